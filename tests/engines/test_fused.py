"""Fused adapters and the head's loss: what peft, transformers and torch compute, with less kept and nothing twice."""

from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from prepared import describe, pairs, render

from loragate.config import Train
from loragate.engines import adapters, fused, heads
from loragate.engines.flat import Flat
from loragate.engines.language_model import read_examples
from loragate.engines.packing import Passes
from loragate.rendering import Example
from loragate.work import Base


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(scope="module")
def examples(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = render(base, tmp_path_factory.mktemp("rows"), pairs(6), pairs(2, start=100))
    return read_examples(f"{folder}/train.jsonl")


def adapted(base: Base, **keys: Any) -> Any:
    """An adapter that does something."""
    model = adapters.adapted_model(base, Train.model_validate({"r": 4, "target_modules": "all"} | keys))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradient(model: Any, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    flat = Flat(model)
    passes = Passes(packed=True, share=True, most_tokens=1000)
    flat.spread()
    nats_N = passes.unit_nats(model, passes.unit(examples))
    nats_N.sum().backward()
    flat.gather()
    return nats_N.detach(), flat.gradient.clone()


@pytest.mark.parametrize("keys", [{}, {"method": "qlora"}, {"method": "qlora", "quantization": "fp4"}])
def test_fused_adapters_have_the_losses_and_gradients_of_peft(
    base: Base, examples: list[Example], keys: dict[str, Any]
) -> None:
    model = adapted(base, dtype="float32", **keys)
    quick = deepcopy(model)
    assert fused.quicken(quick) == ("fused adapters",)
    (expected_N, expected), (nats_N, found) = gradient(model, examples), gradient(quick, examples)
    assert torch.allclose(nats_N, expected_N, rtol=1e-4, atol=1e-5)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_in_bfloat16_they_are_as_near_to_float32_as_peft(base: Base, examples: list[Example]) -> None:
    model = adapted(base, dtype="bfloat16")
    quick = deepcopy(model)
    fused.quicken(quick)
    _, exact = gradient(deepcopy(model).float(), examples)
    (_, plain), (_, found) = gradient(model, examples), gradient(quick, examples)
    assert (found - exact).norm() <= 1.5 * (plain - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("keys", [{"dropout": 0.1}, {"dora": True}, {"method": "qlora", "quantization": "int8"}])
def test_what_cannot_be_fused_is_left_to_peft(base: Base, keys: dict[str, Any]) -> None:
    model = adapted(base, dtype="float32", **keys)
    assert fused.quicken(model) == ()
    assert not any(hasattr(module, "fused_adapter") for _, module in adapters.lora_modules(model))


def test_a_switched_off_adapter_is_switched_off_when_fused(base: Base, examples: list[Example]) -> None:
    model = adapted(base, dtype="float32")
    fused.quicken(model)
    ids = torch.tensor([examples[0].ids])
    with torch.no_grad(), model.disable_adapter():
        off = model(input_ids=ids).logits
    with torch.no_grad():
        assert not torch.allclose(off, model(input_ids=ids).logits, atol=1e-3)
    plain = adapters.load_weights(adapters.Model(base, dtype="float32"))
    with torch.no_grad():
        assert torch.allclose(off, plain(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_what_a_library_replaces_for_a_kind_of_model_is_put_back_but_for_rotations_on_a_gpu() -> None:
    def plain(q: torch.Tensor, k: torch.Tensor) -> str:
        return f"plain {q.device.type} {k.device.type}"

    module = ModuleType("modeling_some")
    module.apply_rotary_pos_emb, module.SomeNorm = plain, torch.nn.LayerNorm
    for _ in range(2):  # also where a second model of the kind comes
        before = dict(vars(module))
        module.apply_rotary_pos_emb, module.SomeNorm = (lambda *_: "quick"), torch.nn.RMSNorm
        fused.put_back(module, before)
        assert module.SomeNorm is torch.nn.LayerNorm
        assert module.apply_rotary_pos_emb(torch.ones(1), torch.ones(1)) == "plain cpu cpu"
        assert module.apply_rotary_pos_emb(torch.ones(1, device="meta"), torch.ones(1)) == "plain meta cpu"


def test_parameters_are_views_into_the_vector(base: Base) -> None:
    model = adapted(base, dtype="float32")
    before = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    flat = Flat(model)
    assert torch.equal(flat.vector.detach(), before)
    with torch.no_grad():
        flat.vector += 1
        flat.gradient.fill_(2)
    after = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    assert torch.equal(after, before + 1)
    assert all(bool((p.grad == 2).all()) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_the_head_s_nats_and_gradient_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, chunk: int, bias: bool
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 29, bias=bias).requires_grad_(False)
    hidden_TD = torch.randn(6, 8, requires_grad=True)
    nodes_N, targets_N = torch.tensor([0, 2, 2, 5, 1]), torch.tensor([3, 28, 0, 7, 7])
    weights_N = torch.rand(5)
    expected_N = torch.nn.functional.cross_entropy(head(hidden_TD[nodes_N]), targets_N, reduction="none")
    (expected_N * weights_N).sum().backward()
    expected_TD, hidden_TD.grad = hidden_TD.grad, None
    monkeypatch.setitem(heads.LOGITS, "cpu", chunk * 29)
    nats_N = heads.head_nats(head, hidden_TD, nodes_N, targets_N)
    (nats_N * weights_N).sum().backward()
    assert torch.allclose(nats_N, expected_N, atol=1e-6)
    assert torch.allclose(hidden_TD.grad, expected_TD, atol=1e-6)
