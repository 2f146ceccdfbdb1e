"""On a CUDA device: kernels, graphs and recomputed layers give the losses and gradients of plain operations."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from loragate.child import ignore
from loragate.config import Train
from loragate.engines import adapters, fused, heads, steps, training
from loragate.engines.flat import Flat
from loragate.engines.packing import Passes, passes_for
from loragate.rendering import Example
from loragate.work import Base, TrainAdapter, Trained

pytestmark = pytest.mark.gpu

HEAD = tuple(range(1, 60))
"""What some rows begin with alike."""


@pytest.fixture(scope="module")
def model(base: Base) -> Any:
    """The base with an adapter that does something."""
    adapted = adapters.adapted_model(base, Train.model_validate({"target_modules": "all", "r": 8}))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return adapted


def row(number: int, *, length: int, shared: bool = True) -> Example:
    ids = tuple((number * 7 + i * i) % 500 for i in range(length))
    ids = HEAD + ids if shared else ids
    return Example(ids, ((len(ids) // 2, len(ids)),), turns=1, stopped_turns=1, rendered_tokens=len(ids))


ROWS = [row(n, length=20 + 17 * n, shared=n % 3 > 0) for n in range(9)]


def gradient(model: Any, rows: Sequence[Example], passes: Passes) -> tuple[float, torch.Tensor]:
    flat = Flat(model)
    nats = steps.accumulate(model, steps.prepare(rows, passes), passes, flat)
    return nats.item(), flat.gradient.clone()


@pytest.mark.parametrize(("share", "tokens"), [(True, 10_000), (True, 300), (False, 10_000)])
def test_rows_through_the_kernels_have_the_gradient_of_rows_one_by_one(model: Any, share: bool, tokens: int) -> None:
    loss, expected = gradient(deepcopy(model).float(), ROWS, Passes(packed=True, share=False, most_tokens=1))
    plain = gradient(deepcopy(model), ROWS, Passes(packed=True, share=False, most_tokens=1))
    quick = deepcopy(model)
    assert fused.quicken(quick)[0] == "fused adapters"
    passes = passes_for(quick, ROWS, tokens, share=share)
    assert passes.longest >= max(len(one.ids) for one in ROWS)
    found = gradient(quick, ROWS, passes)
    assert found[0] == pytest.approx(loss, rel=2e-3)
    # bfloat16 against float32: no further from it than twice what peft's own operations are
    assert (found[1] - expected).norm() <= 2 * (plain[1] - expected).norm()


def test_nats_and_their_gradient_are_those_of_cross_entropy() -> None:
    logits_NV = torch.randn(37, 50_001, device="cuda") * 4
    targets_N = torch.randint(0, 50_001, (37,), device="cuda")
    exact_NV = logits_NV.clone().requires_grad_()
    expected_N = torch.nn.functional.cross_entropy(exact_NV, targets_N, reduction="none")
    expected_N.sum().backward()
    nats_N, slope_NV = heads._slope(logits_NV.clone(), targets_N, wanted=True)
    assert torch.allclose(nats_N, expected_N, rtol=1e-5, atol=1e-5)
    assert torch.allclose(slope_NV, exact_NV.grad, rtol=1e-4, atol=1e-6)


def trained(base: Base, rows: Path, folder: Path, *, checkpointing: bool = False, **keys: Any) -> Trained:
    settings = Train.model_validate({"learning_rate": 1e-3, "epochs": 3, "target_modules": "all"} | keys)
    paths = (str(rows), str(rows), str(folder / "adapter"), str(folder / "scratch"))
    return training.train(TrainAdapter(base, settings, *paths, checkpointing), ignore)


@pytest.mark.parametrize(
    "keys",
    [{}, {"method": "qlora"}, {"forward_tokens": 100}, {"dropout": 1e-6}, {"checkpointing": True}],
    ids=["lora", "qlora", "several packs a step", "peft's operations", "checkpointing"],
)
def test_a_captured_training_has_the_losses_of_the_operations(
    base: Base, rows: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    captured = trained(base, rows, tmp_path / "captured", **keys)
    operations = trained(base, rows, tmp_path / "operations", cuda_graph=False, **keys)
    assert any(way.startswith("CUDA graphs of") for way in captured.ways), captured.ways
    assert not any("graph" in way for way in operations.ways)
    assert len(captured.curve) == len(operations.curve) == 24
    assert captured.modules_without_gradient == ()
    for one, other in zip(captured.curve, operations.curve, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=0.1)


def test_a_captured_training_resumes_with_the_losses_of_the_straight_one(
    base: Base, rows: Path, tmp_path: Path
) -> None:
    straight = trained(base, rows, tmp_path / "straight", checkpoint_steps=4)
    scratch = tmp_path / "resumed" / "scratch"
    trained(base, rows, tmp_path / "resumed", checkpoint_steps=4)
    max(scratch.glob("checkpoint-*.pt")).unlink()
    resumed = trained(base, rows, tmp_path / "resumed", checkpoint_steps=4)
    assert resumed.resumed_from == 20
    for one, other in zip(resumed.curve, straight.curve, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2)


def test_a_model_that_cannot_be_captured_is_trained_operation_by_operation(
    base: Base, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronising(*args: Any) -> Any:
        made = adapters.adapted_model(*args)
        made.get_base_model().model.norm.register_forward_hook(lambda *call: call[-1].sum().item() and None)
        return made

    monkeypatch.setattr(training, "adapted_model", synchronising)
    fallen_back = trained(base, rows, tmp_path / "fallen back", neftune_alpha=1e-6)  # random numbers still come
    assert fallen_back.fallback
    assert not any("graph" in way for way in fallen_back.ways)
    monkeypatch.undo()
    operations = trained(base, rows, tmp_path / "operations", cuda_graph=False)
    losses = [point.loss for point in operations.curve]
    assert [point.loss for point in fallen_back.curve] == pytest.approx(losses, rel=2e-2)


def test_noise_is_drawn_anew_in_every_captured_step(base: Base, rows: Path, tmp_path: Path) -> None:
    noisy = trained(base, rows, tmp_path / "noisy", neftune_alpha=5.0, learning_rate=1e-12, epochs=2)
    clean = trained(base, rows, tmp_path / "clean", learning_rate=1e-12, epochs=2)
    assert any(way.startswith("CUDA graphs of") for way in noisy.ways)
    assert [p.loss for p in noisy.curve] != pytest.approx([p.loss for p in clean.curve], rel=1e-5)
    assert [p.loss for p in noisy.curve] == pytest.approx([p.loss for p in clean.curve], rel=0.2)
