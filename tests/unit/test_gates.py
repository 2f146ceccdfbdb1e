"""The gates as truth tables: each row is one change of good evidence and the rules that refuse it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from checks import data, preflight, training
from loragate.config import Train
from loragate.limits import DataLimits, PreflightLimits, TrainingLimits
from loragate.record import CurvePoint
from loragate.row_work import CheckedFacts, RuleResult
from loragate.verdicts import Verdict
from loragate.work import AdapterEvidence, PreflightEvidence, Trained

NAN, INF = math.nan, math.inf


def refusing(verdict: Verdict) -> set[str]:
    """The rules that refuse; the status must say the same."""
    rules = {finding.rule for finding in verdict.findings if not finding.passed}
    assert verdict.refuses == bool(rules)
    assert all(finding.detail for finding in verdict.findings)
    return rules


FACTS = ("place", "problem", "roles_problem", "question", "digest", "answer_chars", "tokens", "supervised")
GOOD_RESULTS = {
    name: RuleResult(name, success=True, evaluated=10, unexpected=0, examples=(), error="")
    for name in (*data.RULES, *(f"{side}.{fact}_known" for side in ("train", "heldout") for fact in FACTS))
}


DROP = DataLimits(on_reject="drop", max_dropped_share=0.1)


def judged(results: Sequence[RuleResult], dropped: int = 0, limits: DataLimits | None = None) -> Verdict:
    rows = {"train": 100, "heldout": 10}
    return data.judge(CheckedFacts(tuple(results), rows, {"train": dropped, "heldout": 0}), limits or DataLimits())


@pytest.mark.parametrize(("dropped", "rules"), [(0, set()), (10, set()), (11, {"train.dropped"})])
def test_data_gate_holds_what_was_dropped_against_its_ceiling(dropped: int, rules: set[str]) -> None:
    assert refusing(judged([*GOOD_RESULTS.values()], dropped, DROP)) == rules


def test_data_gate_refuses_a_side_of_no_rows_whatever_may_be_dropped() -> None:
    empty = CheckedFacts(tuple(GOOD_RESULTS.values()), {"train": 0, "heldout": 10}, {})
    assert refusing(data.judge(empty, DROP)) == {"train.dropped"}


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        *(({name: {"success": False, "unexpected": 1}}, {name}) for name in data.RULES),
        *(({name: {"evaluated": 0}}, {name}) for name in data.RULES),
        *(({name: {"error": "no such column"}}, {name}) for name in data.RULES),
        ({"train.place_known": {"success": False}}, {"facts_complete"}),
        ({"heldout.supervised_known": {"evaluated": 0}}, {"facts_complete"}),
        ({"train.tokens_known": {"error": "no such column"}}, {"facts_complete"}),
        ({"train.no_duplicates": {"unexpected": 1}}, set()),
        (
            {"train.format": {"success": False}, "heldout.roles": {"evaluated": 0}},
            {"train.format", "heldout.roles"},
        ),
    ],
)
def test_data_gate_refuses(changes: dict[str, dict[str, Any]], rules: set[str]) -> None:
    results = [replace(result, **changes.get(name, {})) for name, result in GOOD_RESULTS.items()]
    assert refusing(judged(results)) == rules


@pytest.mark.parametrize("name", data.RULES)
def test_data_gate_refuses_where_a_rule_was_not_judged(name: str) -> None:
    results = [result for result in GOOD_RESULTS.values() if result.rule != name]
    assert refusing(judged(results)) == {name}


def test_data_gate_refuses_where_nobody_asked_whether_facts_are_known() -> None:
    results = [result for result in GOOD_RESULTS.values() if not result.rule.endswith("_known")]
    assert refusing(judged(results)) == {"facts_complete"}


def test_data_gate_without_results_is_an_error() -> None:
    assert judged([]).status == "error"


def test_data_gate_names_the_rows_and_counts_the_rest() -> None:
    broken = RuleResult("train.format", False, 1000, 7, ("rows.jsonl:3: no prompt", "rows.jsonl:9: no prompt"), "")
    (reason,) = judged([*(GOOD_RESULTS | {"train.format": broken}).values()]).reasons
    assert reason == (
        "train.format: training rows: every row must be readable in its format: broken by 7 of 1,000: "
        "rows.jsonl:3: no prompt; rows.jsonl:9: no prompt; and 5 more"
    )


CURVE = (CurvePoint(1, 2.0, 2e-4, 1.0), CurvePoint(2, 1.5, 1e-4, 0.8, heldout_loss=1.75))
GOOD_TRAINED = Trained(
    curve=CURVE,
    best_step=2,
    trainable=512,
    predicted_trainable=512,
    modules=4,
    modules_without_gradient=(),
    dtype="float32",
    resumed_from=0,
)
SCALE: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
GOOD_ADAPTER = AdapterEvidence(parameters=512, zero_modules=(), not_finite=(), settings=SCALE)


@pytest.mark.parametrize(
    ("trained", "adapter", "rules"),
    [
        ({}, {}, set()),
        ({"resumed_from": 1}, {}, set()),
        ({"curve": ()}, {}, {"loss_finite", "heldout_loss_finite", "gradient_growth"}),
        ({"curve": (CURVE[0], replace(CURVE[1], grad_norm=1000.0))}, {}, set()),
        ({"curve": (CURVE[0], replace(CURVE[1], grad_norm=1001.0))}, {}, {"gradient_growth"}),
        ({"curve": (replace(CURVE[0], grad_norm=0.0), CURVE[1])}, {}, {"gradient_growth"}),
        ({"curve": (replace(CURVE[0], grad_norm=INF), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": CURVE[:1]}, {}, {"heldout_loss_finite"}),
        ({"curve": (replace(CURVE[0], loss=NAN), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": (replace(CURVE[0], loss=INF), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": (replace(CURVE[0], grad_norm=NAN), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": (CURVE[0], replace(CURVE[1], heldout_loss=NAN))}, {}, {"heldout_loss_finite"}),
        ({"curve": (CURVE[0], replace(CURVE[1], heldout_loss=INF))}, {}, {"heldout_loss_finite"}),
        ({"curve": (*CURVE, replace(CURVE[1], step=3, heldout_loss=NAN))}, {}, set()),
        ({"best_step": 0}, {}, {"heldout_loss_finite"}),
        ({"modules": 0}, {}, {"modules_adapted"}),
        ({"modules_without_gradient": ("q_proj",)}, {}, {"gradient_reached"}),
        ({"predicted_trainable": 513}, {}, {"trainable_count"}),
        ({"trainable": 513}, {}, {"trainable_count", "released_count"}),
        ({}, {"parameters": 511}, {"released_count"}),
        ({}, {"zero_modules": ("q_proj",)}, {"lora_b_not_zero"}),
        ({}, {"not_finite": ("q_proj",)}, {"weights_finite"}),
        ({}, {"settings": SCALE | {"lora_alpha": 64}}, {"scale_as_trained"}),
        ({}, {"settings": SCALE | {"r": 8}}, {"scale_as_trained"}),
        ({}, {"settings": SCALE | {"alpha_pattern": {"q_proj": 64}}}, {"scale_as_trained"}),
        ({}, {"settings": {}}, {"scale_as_trained"}),
        (
            {"modules": 0, "trainable": 0, "predicted_trainable": 0},
            {"parameters": 0},
            {"modules_adapted"},
        ),
    ],
)
def test_training_gate_refuses(trained: dict[str, Any], adapter: dict[str, Any], rules: set[str]) -> None:
    found = training.judge(
        replace(GOOD_TRAINED, **trained), replace(GOOD_ADAPTER, **adapter), Train(), TrainingLimits()
    )
    assert refusing(found) == rules


GOOD_PREFLIGHT = PreflightEvidence(
    rows=4,
    packed=True,
    start_difference=0.0,
    dora=False,
    row_difference=1e-6,
    gradient_difference=1e-6,
    unended=0,
    first_unended="",
    modules=8,
    modules_without_gradient=(),
    trainable=100,
    predicted_trainable=100,
    dtype="float32",
)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        ({"rows": 0}, {"rows_tried"}),
        ({"packed": False}, set()),
        ({"unended": 3, "first_unended": "train.jsonl:7"}, {"stops_taught"}),
        ({"start_difference": 1e-30}, {"starts_as_base"}),
        ({"start_difference": 0.05, "dora": True}, set()),
        ({"start_difference": NAN}, {"starts_as_base"}),
        ({"row_difference": 2e-4}, {"row_losses_equal"}),
        ({"row_difference": 2e-4, "dtype": "bfloat16"}, set()),
        ({"row_difference": 0.06, "dtype": "bfloat16"}, {"row_losses_equal"}),
        ({"row_difference": INF}, {"row_losses_equal"}),
        ({"gradient_difference": 2e-3}, {"gradient_does_not_depend_on_batching"}),
        ({"gradient_difference": 0.3, "dtype": "bfloat16"}, {"gradient_does_not_depend_on_batching"}),
        ({"gradient_difference": NAN}, {"gradient_does_not_depend_on_batching"}),
        ({"modules_without_gradient": ("q_proj",)}, {"gradient_reaches"}),
        ({"trainable": 99}, {"trainable_count"}),
        ({"modules": 0}, {"modules_adapted"}),
    ],
)
def test_preflight_gate_refuses(changes: dict[str, Any], rules: set[str]) -> None:
    assert refusing(preflight.judge(replace(GOOD_PREFLIGHT, **changes), PreflightLimits())) == rules
