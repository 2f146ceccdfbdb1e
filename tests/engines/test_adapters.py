"""Adapters of every kind: counted before they are made, silent at the start, and merged into what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from merges import judge_merge
from prepared import Adapter, describe, judged, pairs, render, train

from loragate.artifact_work import MergeAdapter
from loragate.child import ignore
from loragate.config import Train
from loragate.engines.adapters import adapted_model, lora_config, lora_modules, predicted_trainable
from loragate.engines.language_model import load_weights
from loragate.engines.merging import merge
from loragate.errors import ConfigError
from loragate.limits import MergeLimits
from loragate.work import Base, Model

SHORT: dict[str, Any] = {
    "r": 4,
    "alpha": 8,
    "learning_rate": 5e-3,
    "epochs": 2,
    "batch_size": 4,
    "checkpoint_steps": 4,
    "dtype": "float32",
}


def settings(**keys: Any) -> Train:
    return Train.model_validate(SHORT | keys)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(base, tmp_path_factory.mktemp("rows"), pairs(16), pairs(6, start=100))


# Per layer, in + out: q 64+64, k 64+32, v 64+32, o 64+64; gate 64+128, up 64+128, down 128+64. Two layers.
ATTENTION, ALL = 448, 1024
KINDS: dict[str, tuple[dict[str, Any], int, int]] = {
    "lora": ({}, 8, 4 * ATTENTION * 2),
    "minimal": ({"target_modules": "minimal"}, 4, 4 * (128 + 96) * 2),
    "all": ({"target_modules": "all"}, 14, 4 * ALL * 2),
    "gaussian": ({"init": "gaussian"}, 8, 4 * ATTENTION * 2),
    "rslora": ({"rslora": True}, 8, 4 * ATTENTION * 2),
    # out of q, k, v, o: 64 + 32 + 32 + 64
    "dora": ({"dora": True}, 8, (4 * ATTENTION + 192) * 2),
    "dora with ranks": ({"dora": True, "rank_pattern": {"q_proj": 8}}, 8, (4 * ATTENTION + 4 * 128 + 192) * 2),
    "regex": ({"target_modules": r"re:model\.layers\.1\..*\.(q|o)_proj"}, 2, 4 * (128 + 128)),
    # k_proj of layer 1 alone, and the first pattern that fits counts
    "ranks": ({"rank_pattern": {r"1\.self_attn\.k_proj": 2, "[kv]_proj": 6}}, 8, 4 * 256 * 2 + 6 * 96 * 3 + 2 * 96),
    "alphas": ({"alpha_pattern": {"v_proj": 64}}, 8, 4 * ATTENTION * 2),
    "qlora fp4": ({"method": "qlora", "quantization": "fp4", "double_quantization": False}, 8, 4 * ATTENTION * 2),
    "qlora int8": ({"method": "qlora", "quantization": "int8"}, 8, 4 * ATTENTION * 2),
    "qlora dora": ({"method": "qlora", "dora": True}, 8, (4 * ATTENTION + 192) * 2),
}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids_BT = torch.arange(40).reshape(2, 20) % 64
    found: torch.Tensor = model(input_ids=ids_BT).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_has_the_count_computed_by_hand_and_changes_not_a_bit(base: Base, kind: str) -> None:
    keys, modules, count = KINDS[kind]
    model = adapted_model(base, settings(**keys)).eval()
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (len(list(lora_modules(model))), counted, predicted_trainable(model, 4)) == (modules, count, count)
    adapted = logits(model)
    with model.disable_adapter():
        assert torch.equal(adapted, logits(model))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_base_below_a_fresh_adapter_is_the_one_that_is_measured(base: Base, method: str) -> None:
    model = adapted_model(base, settings(method=method)).eval()
    assert torch.equal(logits(model), logits(load_weights(Model(base, quantized=method == "qlora", dtype="float32"))))


def test_an_evaluation_leaves_quantised_weights_and_their_gradients_as_they_are(base: Base) -> None:
    model, ids_BT = adapted_model(base, settings(method="qlora")), torch.arange(40).reshape(2, 20) % 64

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        return [m.lora_B["default"].weight.grad.clone() for _, m in lora_modules(model)]

    before = gradients()
    logits(model.eval())
    assert all(map(torch.equal, before, gradients()))


def test_scales_are_those_of_the_papers(base: Base) -> None:
    def scales(**keys: Any) -> set[float]:
        model = adapted_model(base, settings(r=4, alpha=8, **keys))
        return {round(module.scaling["default"], 6) for _, module in lora_modules(model)}

    assert scales() == {2.0}
    assert scales(rslora=True) == {4.0}
    assert scales(rank_pattern={"q_proj": 16}) == {2.0, 0.5}
    assert scales(alpha_pattern={"q_proj": 16}) == {2.0, 4.0}


def test_starts_differ_as_their_names_say(base: Base) -> None:
    wide = {"r": 64, "target_modules": ("down_proj",)}
    spread = {
        init: torch.cat([m.lora_A["default"].weight.flatten() for _, m in lora_modules(model)]).std().item()
        for init in ("default", "gaussian")
        for model in [adapted_model(base, settings(init=init, **wide))]
    }
    assert spread["gaussian"] == pytest.approx(1 / 64, rel=0.05)
    assert spread["default"] == pytest.approx((1 / 128 / 3) ** 0.5, rel=0.05)  # uniform within 1 / sqrt(in)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rank_pattern": {"query": 8}}, r"train\.rank_pattern: query fits no adapted module; they are like model\."),
        ({"alpha_pattern": {"down_proj": 8}}, r"train\.alpha_pattern: down_proj fits no adapted module"),
        ({"target_modules": "re:.*query"}, r"train\.target_modules \['re:\.\*query'\]: .*not found"),
    ],
)
def test_what_fits_no_module_is_a_fault_of_the_run_file(base: Base, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        adapted_model(base, settings(**keys))


def test_a_regular_expression_reaches_peft_without_its_mark() -> None:
    assert lora_config(settings(target_modules="re:.*_proj")).target_modules == ".*_proj"
    assert lora_config(settings(target_modules="all")).target_modules == "all-linear"


@pytest.fixture(
    scope="module",
    params=["dora", "dora with ranks", "rslora", "ranks", "alphas", "qlora fp4", "qlora int8", "qlora dora"],
)
def trained(
    request: pytest.FixtureRequest, base: Base, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Adapter, Train]:
    kind = settings(**KINDS[request.param][0])
    return train(base, rows, tmp_path_factory.mktemp("trained"), kind), kind


def test_every_kind_passes_the_training_gate(trained: tuple[Adapter, Train]) -> None:
    adapter, _ = trained
    verdict = judged(adapter)
    assert verdict.status == "pass", verdict.sentence
    assert adapter.trained.curve[-1].loss < adapter.trained.curve[0].loss


def test_every_kind_merges_into_what_was_trained(
    base: Base, rows: Path, tmp_path: Path, trained: tuple[Adapter, Train]
) -> None:
    adapter, kind = trained
    model = Model(
        base,
        str(adapter.folder),
        quantized=kind.method == "qlora",
        dtype="float32",
        quantization=kind.quantization,
        double_quantization=kind.double_quantization,
    )
    merge(MergeAdapter(model, str(tmp_path / "merged")), ignore)
    verdict = judge_merge(model, tmp_path / "merged", rows / "heldout.jsonl", tmp_path, MergeLimits())
    assert verdict.status == "pass", verdict.sentence
