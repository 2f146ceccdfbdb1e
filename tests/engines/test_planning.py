"""The plan: counts equal what training counts, and what is kept for the backward pass is what a real pass keeps."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prepared import describe, pairs, render, train

from checks import plan as plan_gate
from loragate.attempt import FetchedBase, Rows
from loragate.child import ignore
from loragate.config import FORWARD_TOKENS, Config, Train
from loragate.engines import planning, tracking
from loragate.engines.adapters import adapted_model
from loragate.engines.language_model import read_examples
from loragate.engines.packing import CPU_TOKENS
from loragate.errors import ConfigError
from loragate.limits import PlanLimits
from loragate.plan import DeviceFacts, ModelFacts, Plan
from loragate.starter import EXAMPLE
from loragate.work import Base, Counted, PlanTraining, TrainAdapter
from tasks.plan_training import planned
from tasks.train_adapter import train_adapter

ROOM = 1e10
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "all": {"target_modules": "all"},
    "dora": {"dora": True},
    "ranks": {"rank_pattern": {"q_proj": 2}, "r": 8},
    "qlora": {"method": "qlora"},
}


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(base, tmp_path_factory.mktemp("rows"), pairs(24), pairs(6, start=100))


def counted(base: Base, rows: Path, settings: Train) -> Counted:
    return planning.count(PlanTraining(base, settings, str(rows), 96, ROOM), ignore)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_on_nothing_is_what_is_trained(base: Base, rows: Path, tmp_path: Path, kind: str) -> None:
    settings = Train(epochs=1, dtype="float32", **KINDS[kind])
    plan, trained = counted(base, rows, settings).model, train(base, rows, tmp_path, settings).trained
    assert (plan.trainable, plan.modules, plan.dtype) == (trained.trainable, trained.modules, trained.dtype)
    assert plan.compute_dtype == ("float32" if kind == "qlora" else "")


def test_rows_and_model_are_described(base: Base, rows: Path) -> None:
    plan = counted(base, rows, Train(dtype="float32", r=8, rank_pattern={"k_proj": 16}))
    examples = read_examples(f"{rows}/train.jsonl")
    lengths = [len(example.ids) for example in examples]
    assert (plan.rows.rows, plan.rows.tokens, plan.rows.longest) == (24, sum(lengths), max(lengths))
    assert plan.rows.supervised == sum(sum(example.mask) for example in examples)
    assert (plan.model.rank, plan.model.narrowest, plan.model.positions) == (16, 32, 512)
    assert plan.model.kinds == ("k_proj", "o_proj", "q_proj", "v_proj")


def kept_by_a_real_pass(model: Any, tokens: int) -> int:
    """Bytes that the backward pass needs, of tensors with contents in a pass through fused attention; not the mask."""
    inner, saved = model.get_base_model(), {}
    ids_BT, mask = torch.arange(tokens)[None], torch.zeros(1, 1, tokens, tokens)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), mask)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inner.base_model(input_ids=ids_BT, attention_mask=mask, position_ids=ids_BT, use_cache=False)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("kind", ["lora", "all", "ranks"])
def test_activations_are_those_that_a_real_pass_keeps(base: Base, rows: Path, kind: str) -> None:
    settings = Train(dtype="float32", batch_size=100, forward_tokens=400, **KINDS[kind])
    estimated = counted(base, rows, settings).model.memory.activations
    assert estimated == pytest.approx(kept_by_a_real_pass(adapted_model(base, settings), 400), rel=0.03)


def test_weights_are_those_in_memory(base: Base, rows: Path) -> None:
    whole = counted(base, rows, Train(dtype="float32")).model.memory.weights
    assert whole == 4 * base.parameters
    assert counted(base, rows, Train(dtype="bfloat16")).model.memory.weights == 2 * base.parameters
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    largest = 64 * 128
    four_bit = counted(base, rows, Train(dtype="float32", method="qlora")).model.memory.weights
    assert four_bit == 4 * (base.parameters - linear + largest) + int(linear * (0.5 + (1 + 4 / 256) / 64))
    eight_bit = counted(base, rows, Train(dtype="float32", method="qlora", quantization="int8")).model.memory.weights
    assert eight_bit == 4 * (base.parameters - linear + largest) + linear


def test_memory_on_a_gpu_is_that_of_its_own_ways(base: Base, rows: Path) -> None:
    settings = Train(dtype="bfloat16", batch_size=100, forward_tokens=400)
    facts = counted(base, rows, settings)
    memory = planning.count_model(base, settings, facts.rows, "cuda", ROOM).memory
    assert memory.runtime == planning.RUNTIME
    assert memory.weights == 2 * base.parameters
    assert memory.adapter == (4 + 4 + 4 + 4 + 2) * facts.model.trainable
    supervised = 400 * facts.rows.supervised / facts.rows.tokens
    assert memory.logits == int(supervised * base.vocabulary * 2 + supervised * 64 * 2 * 2)
    assert memory.activations is not None
    assert facts.model.memory.activations is not None
    assert memory.activations < facts.model.memory.activations


def test_logits_on_a_cpu_are_float32_and_no_more_than_are_held_at_once(
    base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Train(dtype="float32", batch_size=100, forward_tokens=400)
    whole = counted(base, rows, settings)
    supervised = 400 * whole.rows.supervised / whole.rows.tokens
    assert whole.model.memory.logits == int(supervised * base.vocabulary * 12 + supervised * 64 * 4 * 2)
    assert whole.model.memory.adapter == 16 * whole.model.trainable
    monkeypatch.setitem(planning.LOGITS, "cpu", 1000)
    assert counted(base, rows, settings).model.memory.logits == int(1000 * 12 + supervised * 64 * 4 * 2)


@pytest.mark.parametrize(
    ("asked", "chosen", "status"), [("auto", True, "pass"), ("on", True, "pass"), ("off", False, "fail")]
)
def test_a_job_that_fits_only_with_checkpointing_gets_it_or_is_refused(
    base: Base, rows: Path, asked: str, chosen: bool, status: str
) -> None:
    settings = Train.model_validate(
        {"dtype": "float32", "batch_size": 24, "forward_tokens": 400, "gradient_checkpointing": asked}
    )
    facts = counted(base, rows, settings)
    memory = facts.model.memory
    assert memory.recomputing.total < memory.total
    between = DeviceFacts("a device", (memory.recomputing.total + memory.total) // 2, "float32")
    plan = planned(facts, between, settings, 1.0)
    assert plan.checkpointing == chosen
    verdict = plan_gate.judge(settings, plan, PlanLimits(small_rows=1))
    assert verdict.status == status, verdict.sentence
    assert [finding.rule for finding in verdict.findings if not finding.passed] == ["memory"] * (status == "fail")
    ample = DeviceFacts("a device", memory.total, "float32")
    assert planned(facts, ample, settings, 1.0).checkpointing == (asked == "on")


@pytest.mark.parametrize("chosen", [True, False])
def test_training_is_asked_for_what_the_plan_on_record_chose(
    base: Base, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    facts = counted(base, rows, Train(dtype="float32"))
    plan = Plan(facts.rows, facts.model, planning.describe_device(None, ignore), 1, 1, checkpointing=chosen)
    asked: list[TrainAdapter] = []

    class Asked(Exception):  # noqa: N818 - ends the task once it has asked
        pass

    def call(target: str, request: TrainAdapter, **_: Any) -> None:
        asked.append(request)
        raise Asked

    config = Config.model_validate_json(json.dumps(EXAMPLE))
    attempt: Any = SimpleNamespace(
        kind="check",
        config=config,
        home=SimpleNamespace(store=SimpleNamespace(scratch=lambda _: tmp_path)),
        build=lambda _, __, make: make(tmp_path / "folder"),
        call=call,
    )
    monkeypatch.setattr(tracking, "live_metrics", lambda _: ignore)
    with pytest.raises(Asked, match=r"^$"):
        train_adapter.fn(attempt, FetchedBase(base, "d"), Rows(str(rows), "d"), plan)
    assert [request.checkpointing for request in asked] == [chosen]


def test_the_device_has_memory_and_a_fast_number_format() -> None:
    device = planning.describe_device(None, ignore)
    assert device.memory > 10**8
    assert device.name
    assert device.fast_dtype in {"float32", "bfloat16"}


def test_an_unknown_module_is_a_fault_of_the_run_file_before_anything_is_loaded(base: Base, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.target_modules \['query'\]: .*not found"):
        counted(base, rows, Train(target_modules=("query",)))


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_on_a_gpu_a_step_goes_in_as_few_passes_as_there_is_room_for(base: Base, rows: Path, passes: int) -> None:
    facts = counted(base, rows, Train(dtype="bfloat16")).rows

    def planned_for(room: float, asked: int | None = None) -> ModelFacts:
        settings = Train(dtype="bfloat16", batch_size=400, forward_tokens=asked)
        return planning.count_model(base, settings, facts, "cuda", room)

    step = planned_for(1e12).forward_tokens
    part = math.ceil(step / passes)
    needed = planned_for(0, part).memory.total
    assert planned_for(needed / planning.CAREFUL + 1).forward_tokens == part
    assert planned_for(needed / planning.CAREFUL - 1).forward_tokens == math.ceil(step / (passes + 1))
    assert planned_for(0).forward_tokens == FORWARD_TOKENS


def test_a_row_longer_than_a_usual_pass_goes_in_one_of_its_own_where_there_is_no_room(base: Base, rows: Path) -> None:
    facts = replace(counted(base, rows, Train(dtype="bfloat16")).rows, longest=FORWARD_TOKENS + 1)
    found = planning.count_model(base, Train(dtype="bfloat16", batch_size=400), facts, "cuda", 0)
    assert found.forward_tokens == facts.longest


def test_on_a_cpu_a_pass_is_no_longer_than_pays(base: Base, rows: Path) -> None:
    assert counted(base, rows, Train(dtype="float32", batch_size=400)).model.forward_tokens == CPU_TOKENS
