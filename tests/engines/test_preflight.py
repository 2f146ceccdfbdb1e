"""The preflight: sound arithmetic passes, and each mistake that trainers have made is caught before training starts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import describe, pairs, render

from checks import preflight as gate
from loragate.child import ignore
from loragate.config import Train
from loragate.engines import adapters, flat, language_model, packing, preflight, steps
from loragate.engines.packing import Pack, Passes
from loragate.limits import PreflightLimits
from loragate.rendering import Example
from loragate.work import Base, Preflight, PreflightEvidence

SETTINGS = {"r": 4, "alpha": 8, "dtype": "float32", "dropout": 0.1}


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(base, tmp_path_factory.mktemp("rows"), pairs(12), pairs(4, start=100))


def tried(base: Base, rows: Path, **settings: Any) -> PreflightEvidence:
    request = Preflight(base, Train.model_validate(SETTINGS | settings), str(rows / "train.jsonl"), 4)
    return preflight.try_out(request, ignore)


def refused(evidence: PreflightEvidence) -> set[str]:
    return {finding.rule for finding in gate.judge(evidence, PreflightLimits()).findings if not finding.passed}


@pytest.mark.parametrize("settings", [{}, {"method": "qlora"}, {"target_modules": ("all-linear",)}, {"dora": True}])
def test_sound_arithmetic_passes(base: Base, rows: Path, settings: dict[str, Any]) -> None:
    evidence = tried(base, rows, **settings)
    assert refused(evidence) == set()
    assert (evidence.rows, evidence.packed) == (4, True)
    assert evidence.start_difference <= (1e-5 if "dora" in settings else 0.0)
    assert evidence.row_difference < 1e-5
    assert evidence.gradient_difference < 1e-5


def test_padded_passes_are_as_exact(base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "can_pack", lambda *_: False)
    evidence = tried(base, rows)
    assert (refused(evidence), evidence.packed) == (set(), False)


Patch = Callable[[pytest.MonkeyPatch], None]


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    def accumulate(model: Any, batch: steps.Batch, passes: Passes, _: flat.Flat) -> torch.Tensor:
        for unit in batch.units:
            (passes.unit_nats(model, unit).mean() / len(batch.units)).backward()
        return torch.zeros(())

    patch.setattr(steps, "accumulate", accumulate)


def packed_as(change: Callable[[Pack], Pack]) -> Patch:
    def plant(patch: pytest.MonkeyPatch) -> None:
        pack = packing.pack
        patch.setattr(packing, "pack", lambda *args, **more: change(pack(*args, **more)))

    return plant


def without_mask(packed: Pack) -> Pack:
    nodes = len(packed.ids_T)
    one_row = {"starts_R": np.array([0, nodes]), "key_starts_R": np.array([0, nodes]), "keys_K": np.arange(nodes)}
    return replace(packed, ends_T=np.full_like(packed.ends_T, nodes), **one_row)


def shifted(packed: Pack) -> Pack:
    return replace(packed, nodes_N=packed.nodes_N + 1)


def positions_not_reset(packed: Pack) -> Pack:
    return replace(packed, positions_T=np.arange(len(packed.positions_T)))


def pad_in_the_loss(patch: pytest.MonkeyPatch) -> None:
    padded = language_model.padded

    def everything(examples: Sequence[Example]) -> Any:
        ids_BT, attention_BT, supervised_BT = padded(examples)
        return ids_BT, attention_BT, supervised_BT | (attention_BT == 0)

    patch.setattr(packing, "can_pack", lambda *_: False)
    patch.setattr(language_model, "padded", everything)


def frozen_module(patch: pytest.MonkeyPatch) -> None:
    adapted_model = preflight.adapted_model

    def frozen(*args: Any) -> Any:
        model = adapted_model(*args)
        _, module = next(adapters.lora_modules(model))
        module.lora_B["default"].weight.requires_grad = False
        return model

    patch.setattr(preflight, "adapted_model", frozen)


def adapter_that_starts_off(patch: pytest.MonkeyPatch) -> None:
    adapted_model = preflight.adapted_model

    def off(*args: Any) -> Any:
        model = adapted_model(*args)
        _, module = next(adapters.lora_modules(model))
        torch.nn.init.normal_(module.lora_B["default"].weight)
        return model

    patch.setattr(preflight, "adapted_model", off)


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        (mean_of_means, "gradient_does_not_depend_on_batching"),
        (packed_as(without_mask), "row_losses_equal"),
        (packed_as(shifted), "row_losses_equal"),
        (packed_as(positions_not_reset), "gradient_does_not_depend_on_batching"),
        (pad_in_the_loss, "row_losses_equal"),
        (frozen_module, "gradient_reaches"),
        (adapter_that_starts_off, "starts_as_base"),
    ],
    ids=["mean of means", "no block mask", "shifted labels", "positions", "pad in the loss", "frozen", "not zero"],
)
def test_planted_mistake_is_caught(
    base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch, plant: Patch, rule: str
) -> None:
    plant(monkeypatch)
    assert rule in refused(tried(base, rows))
