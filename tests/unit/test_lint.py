"""The plan gate as a truth table: what each rule warns of or refuses, and what lies just within its limit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checks import plan as plan_gate
from loragate.config import Train
from loragate.limits import PlanLimits
from loragate.lint import acting_rate, lint
from loragate.plan import DeviceFacts, Memory, ModelFacts, Plan, RowFacts
from loragate.presets import PRESETS
from loragate.record import AttemptRecord, Journal, Opened
from loragate.work import Counted
from tasks.plan_training import planned as made
from tasks.plan_training import slowest_rate

ROWS = RowFacts(rows=100, tokens=6000, supervised=2000, longest=200, max_tokens=256)
MODEL = ModelFacts(
    parameters=1_000_000,
    trainable=10_000,
    modules=8,
    kinds=("q_proj", "v_proj"),
    rank=16,
    narrowest=32,
    positions=512,
    dtype="float32",
    compute_dtype="",
    memory=Memory(weights=4_000, adapter=160, activations=5_000, logits=500, runtime=340),
)
DEVICE = DeviceFacts("a device", memory=10_000, fast_dtype="bfloat16")
OPENED = Opened("a", "m", "2026-11-24T00:00:00+00:00", {"train": {"method": "lora", "dora": False}}, {})


def planned(**facts: Any) -> Plan:
    """A plan that breaks no rule but by the given facts, of rows, model and device alike."""

    def changed(part: Any) -> Any:
        return replace(part, **{name: value for name, value in facts.items() if hasattr(part, name)})

    memory = {"memory": changed(MODEL.memory)}
    device = replace(DEVICE, **{name: facts[f"device_{name}"] for name in ("memory",) if f"device_{name}" in facts})
    how = facts.get("checkpointing", False)
    return Plan(changed(ROWS), replace(changed(MODEL), **memory), device, steps=39, epochs=3, checkpointing=how)


def broken(settings: dict[str, Any], facts: dict[str, Any], limits: dict[str, Any] | None = None) -> dict[str, str]:
    found = lint(Train.model_validate(settings), planned(**facts), PlanLimits(**limits or {}))
    return {finding.rule: finding.severity for finding in found if not finding.passed}


@pytest.mark.parametrize(
    ("settings", "facts", "expected"),
    [
        ({}, {}, {}),
        # rank
        ({"r": 17}, {"rank": 17}, {"rank_for_rows": "warn"}),
        ({"r": 17}, {"rank": 17, "rows": 999}, {"rank_for_rows": "warn"}),
        ({"r": 17}, {"rank": 17, "rows": 1000}, {}),
        ({"r": 64}, {"rank": 33, "rows": 1000}, {"rank_for_width": "warn"}),
        ({"r": 64}, {"rank": 32, "rows": 1000}, {}),
        # projections
        ({"target_modules": "q_proj"}, {"kinds": ("q_proj",)}, {"projections": "warn"}),
        # learning rate, at scales of at most 2 and beyond
        ({"learning_rate": 9.9e-5}, {}, {"learning_rate_low": "warn"}),
        ({"learning_rate": 1e-4}, {}, {}),
        ({"learning_rate": 1e-3}, {}, {}),
        ({"learning_rate": 1.1e-3}, {}, {"learning_rate_high": "warn"}),
        ({"learning_rate": 1e-3, "alpha": 16}, {}, {}),
        ({"learning_rate": 1e-3, "alpha": 64}, {}, {"learning_rate_high": "warn"}),
        ({"learning_rate": 3e-4, "rslora": True}, {}, {"learning_rate_high": "warn"}),
        ({"learning_rate": 5e-5, "alpha": 64}, {}, {}),
        # epochs
        ({"epochs": 6}, {}, {"epochs": "warn"}),
        ({"epochs": 5}, {}, {}),
        ({"epochs": 6}, {"rows": 1000}, {}),
        # rows of a step
        ({"batch_size": 101}, {}, {"batch_for_rows": "warn"}),
        ({"batch_size": 100}, {}, {}),
        # noise and patience
        ({"neftune_alpha": 15.0}, {}, {}),
        ({"neftune_alpha": 15.1}, {}, {"neftune_alpha": "warn"}),
        ({"epochs": 4, "early_stopping": 2}, {}, {}),
        ({"epochs": 4, "early_stopping": 3}, {}, {"early_stopping": "warn"}),
        ({"epochs": 1, "early_stopping": 0}, {}, {}),
        ({"epochs": 1, "early_stopping": 1}, {}, {"early_stopping": "warn"}),
        # number formats
        ({"method": "qlora"}, {"compute_dtype": "float32"}, {}),
        ({"method": "qlora"}, {"compute_dtype": "bfloat16"}, {"compute_dtype": "refuse"}),
        ({}, {"dtype": "bfloat16"}, {}),
        ({}, {"dtype": "float16"}, {"dtype_fast": "warn"}),
        # lengths
        ({}, {"max_tokens": 513}, {"max_tokens": "warn"}),
        ({}, {"max_tokens": 600, "longest": 512}, {"max_tokens": "warn"}),
        ({}, {"max_tokens": 600, "longest": 513}, {"max_tokens": "warn", "longest_row": "refuse"}),
        ({}, {"max_tokens": 10**6, "longest": 10**6, "positions": 0}, {}),
        # memory
        ({}, {"weights": 4_001}, {"memory": "refuse"}),
        ({}, {"activations": 5_001}, {"memory": "refuse"}),
        ({}, {"activations": None}, {"memory_complete": "warn"}),
        ({}, {"device_memory": 0}, {"memory": "refuse"}),
        ({}, {"activations": 9_000, "checkpointed": 5_000, "checkpointing": True}, {}),
        ({}, {"activations": 9_000, "checkpointed": 5_001, "checkpointing": True}, {"memory": "refuse"}),
        ({}, {"checkpointed": None, "checkpointing": True}, {"memory_complete": "warn"}),
        # a preset that the run file leaves nothing of
        ({"preset": "mlx"} | {key: getattr(Train(), key) for key in PRESETS["mlx"]}, {}, {"preset": "warn"}),
        ({"preset": "mlx", "batch_size": 8}, {}, {}),
        ({"preset": "unsloth"}, {}, {}),
    ],
)
def test_plan_gate_refuses_and_warns(settings: dict[str, Any], facts: dict[str, Any], expected: dict[str, str]) -> None:
    assert broken(settings, facts) == expected
    verdict = plan_gate.judge(Train.model_validate(settings), planned(**facts), PlanLimits())
    worst = {*expected.values()}
    assert verdict.status == ("fail" if "refuse" in worst else "warn" if worst else "pass")


@pytest.mark.parametrize(
    ("limit", "settings"),
    [
        ({"small_rows": 100}, {"epochs": 6}),
        ({"max_small_rank": 17}, {"r": 17}),
        ({"max_small_epochs": 6}, {"epochs": 6}),
        ({"min_learning_rate": 5e-5}, {"learning_rate": 5e-5}),
        ({"max_learning_rate": 5e-3}, {"learning_rate": 5e-3}),
        ({"max_neftune_alpha": 30.0}, {"neftune_alpha": 30.0}),
    ],
)
def test_every_limit_can_be_moved(limit: dict[str, Any], settings: dict[str, Any]) -> None:
    facts = {"rank": settings.get("r", 16)}
    assert broken(settings, facts) != {}
    assert broken(settings, facts, limit) == {}


def test_limits_of_facts_can_be_moved() -> None:
    assert broken({}, {"kinds": ("q_proj",)}, {"min_projections": 1}) == {}
    assert broken({}, {"weights": 5_000}, {"max_memory_share": 1.1}) == {}
    assert broken({}, {}, {"max_memory_share": 0.99}) == {"memory": "refuse"}


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_warns_of_its_own_learning_rate_or_modules(preset: str) -> None:
    settings = {"preset": preset}
    rank = Train.model_validate(settings).r
    assert set(broken(settings, {"rank": rank})) <= {"epochs"}


def test_published_recipes_act_at_one_rate() -> None:
    rates = {preset: acting_rate(Train.model_validate({"preset": preset})) for preset in PRESETS}
    assert rates == pytest.approx(
        {"none": 2e-4, "balanced": 1e-4, "minimal": 2e-4, "unsloth": 2e-4, "minimind": 1e-4, "mlx": 1e-4}
    )


def test_what_does_not_hold_says_why_with_its_value_and_limit() -> None:
    facts = {"rank": 64, "narrowest": 64, "weights": 10_000}
    found = {f.rule: f for f in lint(Train(r=64), planned(**facts), PlanLimits())}
    assert found["rank_for_rows"].detail.startswith("rank, for 100 rows, is 64, at most 16 allowed: few rows do not")
    assert "arXiv 2106.09685, table 6" in found["rank_for_rows"].detail
    assert (found["rank_for_rows"].value, found["rank_for_rows"].limit) == (64, 16)
    assert found["memory"].value == pytest.approx(1.6)
    assert "it does not fit; lower train.forward_tokens" in found["memory"].detail
    assert found["epochs"].detail == "number of epochs, over 100 rows, is 3, at most 5 allowed"


def test_plan_comes_back_from_the_record_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("opened", "", OPENED)
    recomputed = planned(activations=None, checkpointed=7, checkpointing=True)
    for plan in (planned(), recomputed, replace(planned(activations=None), seconds=12.5)):
        journal.append("plan", "", plan)
        assert journal.read().plan == plan
        assert json.loads(json.dumps(plan.as_told())) == plan.as_told()
    assert plan.as_told()["seconds"] == 12.5


def test_time_is_told_by_the_slowest_training_of_its_kind() -> None:
    def ran(seconds: float, plan: Plan | None = None) -> AttemptRecord:
        return AttemptRecord(OPENED, None, plan=plan or planned(), seconds={"train": seconds})

    train = {"method": "lora", "dora": False}
    assert slowest_rate([], planned(), train) is None
    assert slowest_rate([ran(30.0), ran(60.0), ran(0.02)], planned(), train) == 3 * 6000 / 60
    others = [ran(60.0, planned(dtype="bfloat16")), ran(60.0, planned(device_memory=1)), AttemptRecord(OPENED, None)]
    assert slowest_rate(others, planned(), train) is None
    assert slowest_rate([ran(60.0, planned(checkpointing=True))], planned(), train) is None
    assert slowest_rate([ran(60.0)], planned(), train | {"method": "qlora"}) is None


# Without gradient checkpointing 10,000 bytes, with it 6,000.
EITHER = {"activations": 5_000, "checkpointed": 1_000}


@pytest.mark.parametrize(
    ("asked", "device", "share", "chosen", "status"),
    [
        ("auto", 10_000, 1.0, False, "pass"),
        ("auto", 9_999, 1.0, True, "pass"),
        ("auto", 10_000, 0.99, True, "pass"),
        ("auto", 6_000, 1.0, True, "pass"),
        ("auto", 5_999, 1.0, True, "fail"),
        ("off", 10_000, 1.0, False, "pass"),
        ("off", 9_999, 1.0, False, "fail"),
        ("on", 10_000, 1.0, True, "pass"),
        ("on", 10**9, 1.0, True, "pass"),
        ("on", 5_999, 1.0, True, "fail"),
    ],
)
def test_activations_are_recomputed_as_asked_or_where_nothing_else_fits(
    asked: str, device: int, share: float, chosen: bool, status: str
) -> None:
    settings = Train.model_validate({"gradient_checkpointing": asked})
    told = planned(**EITHER)
    plan = made(Counted(told.rows, told.model), replace(DEVICE, memory=device), settings, share)
    assert (plan.checkpointing, plan.as_told()["gradient_checkpointing"]) == (chosen, chosen)
    assert plan.memory.total == (6_000 if chosen else 10_000)
    assert (plan.steps, plan.epochs) == (39, 3)
    assert plan_gate.judge(settings, plan, PlanLimits(max_memory_share=share)).status == status


@pytest.mark.parametrize(
    ("asked", "facts", "advised"),
    [
        ("off", EITHER, True),
        ("off", EITHER | {"checkpointed": 4_001}, False),
        ("off", {}, False),
        ("auto", EITHER | {"checkpointing": True}, False),
    ],
    ids=["it would fit", "it would not", "nobody knows", "it is on"],
)
def test_refusal_advises_to_recompute_where_that_would_fit(asked: str, facts: dict[str, Any], advised: bool) -> None:
    settings = Train.model_validate({"gradient_checkpointing": asked})
    plan = planned(**facts, device_memory=9_000 if facts.get("checkpointing") is None else 5_000)
    (found,) = (f for f in lint(settings, plan, PlanLimits()) if f.rule == "memory")
    assert not found.passed
    assert ("it does not fit; set train.gradient_checkpointing to auto (0.00 GB), lower" in found.detail) == advised
    assert ("activations with gradient checkpointing 0.00" in found.detail) == plan.checkpointing
