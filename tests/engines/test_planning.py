"""The plan: counts equal what training counts, and what is kept for the backward pass is what a real pass keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import describe, pairs, render, train

from loragate.child import ignore
from loragate.config import Train
from loragate.engines import planning
from loragate.engines.adapters import adapted_model
from loragate.engines.language_model import read_examples
from loragate.errors import ConfigError
from loragate.work import Base, Counted, PlanTraining

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
    return planning.count(PlanTraining(base, settings, str(rows), 96), ignore)


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


def test_the_device_has_memory_and_a_fast_number_format() -> None:
    device = planning.describe_device(None, ignore)
    assert device.memory > 10**8
    assert device.name
    assert device.fast_dtype in {"float32", "bfloat16"}


def test_an_unknown_module_is_a_fault_of_the_run_file_before_anything_is_loaded(base: Base, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.target_modules \['query'\]: .*not found"):
        counted(base, rows, Train(target_modules=("query",)))
