"""An adapter is judged by what lies on disk: zeroed, poisoned and cut-down copies of a good one are refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prepared import Adapter, describe, judged, pairs, render, train
from safetensors.torch import load_file, save_file

from loragate.config import Train

Tensors = dict[str, torch.Tensor]
SETTINGS = Train(r=4, learning_rate=5e-3, epochs=1, batch_size=4, dtype="float32")


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    base, folder = describe(tiny_model), tmp_path_factory.mktemp("adapter")
    return train(base, render(base, folder, pairs(8), pairs(4, start=100)), folder, SETTINGS)


def keep(tensors: Tensors) -> None:
    pass


def zero_every_b(tensors: Tensors) -> None:
    for name in tensors:
        if ".lora_B." in name:
            tensors[name].zero_()


def zero_one_b(tensors: Tensors) -> None:
    next(t for name, t in tensors.items() if ".lora_B." in name).zero_()


def poison_with_nan(tensors: Tensors) -> None:
    next(iter(tensors.values()))[0, 0] = torch.nan


def poison_with_infinity(tensors: Tensors) -> None:
    next(iter(tensors.values()))[0, 0] = torch.inf


def drop_a_module(tensors: Tensors) -> None:
    tensors.pop(next(iter(tensors)))


CASES: dict[str, tuple[Callable[[Tensors], None], set[str]]] = {
    "as trained": (keep, set()),
    "every lora_B zero": (zero_every_b, {"lora_b_not_zero"}),
    "one lora_B zero": (zero_one_b, {"lora_b_not_zero"}),
    "a NaN": (poison_with_nan, {"weights_finite"}),
    "an infinity": (poison_with_infinity, {"weights_finite"}),
    "a tensor gone": (drop_a_module, {"released_count"}),
}


@pytest.mark.parametrize(("damage", "rules"), CASES.values(), ids=CASES)
def test_an_adapter_is_refused_for_what_lies_on_disk(
    adapter: Adapter, tmp_path: Path, damage: Callable[[Tensors], None], rules: set[str]
) -> None:
    copy = Path(shutil.copytree(adapter.folder, tmp_path / "copy"))
    tensors = load_file(copy / "adapter_model.safetensors")
    damage(tensors)
    save_file(tensors, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    verdict = judged(replace(adapter, folder=copy))
    assert {f.rule for f in verdict.findings if not f.passed} == rules, verdict.sentence
    assert verdict.refuses == bool(rules)


def test_the_refusal_names_a_zeroed_module(adapter: Adapter, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter.folder, tmp_path / "copy"))
    tensors = load_file(copy / "adapter_model.safetensors")
    zero_every_b(tensors)
    save_file(tensors, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    verdict = judged(replace(adapter, folder=copy))
    assert "lora_b_not_zero: 8 modules have an adapter that is all zero, the first is base_model" in verdict.sentence
