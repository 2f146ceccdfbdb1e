"""On a CUDA device: bfloat16 is chosen, LoRA and QLoRA train, and merged weights are what was trained."""

from pathlib import Path

import pytest
import torch
from merges import judge_merge

from checks import preflight as preflight_gate
from checks import training
from loragate.artifact_work import MergeAdapter
from loragate.child import ignore
from loragate.config import Train
from loragate.engines import adapters, merging, preflight, scoring
from loragate.engines import training as trainer
from loragate.engines.language_model import choose_dtype
from loragate.limits import MergeLimits, PreflightLimits, TrainingLimits
from loragate.perplexity import total
from loragate.work import Base, MeasureModel, Method, Model, Preflight, TrainAdapter

pytestmark = pytest.mark.gpu


def test_bfloat16_is_chosen_on_the_device() -> None:
    assert choose_dtype("auto") == torch.bfloat16


def test_scores_on_the_device_equal_those_of_the_cpu(
    base: Base, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = MeasureModel(Model(base, dtype="float32"), str(rows), (), 1, 4096, str(tmp_path), {})
    with monkeypatch.context() as without:  # first, because Liger's kernels stay in the model's module
        without.setattr(torch.cuda, "is_available", lambda: False)
        on_cpu = total(scoring.measure(request, ignore).rows)
    on_device = total(scoring.measure(request, ignore).rows)
    assert on_device.tokens == on_cpu.tokens
    assert on_device.nats == pytest.approx(on_cpu.nats, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_training_and_merging_pass_their_gates(base: Base, rows: Path, tmp_path: Path, method: Method) -> None:
    adapter, merged = str(tmp_path / "adapter"), str(tmp_path / "merged")
    settings = Train(method=method, learning_rate=5e-3, epochs=8)
    request = TrainAdapter(base, settings, str(rows), str(rows), adapter, str(tmp_path / "scratch"))
    trained = trainer.train(request, ignore)
    evidence = adapters.inspect_adapter(adapter, ignore)
    assert training.judge(trained, evidence, settings, TrainingLimits()).status == "pass"
    assert trained.curve[-1].loss < 0.75 * trained.curve[0].loss
    assert trained.dtype == "bfloat16"
    model = Model(base, adapter, quantized=method == "qlora")
    merging.merge(MergeAdapter(model, merged), ignore)
    verdict = judge_merge(model, Path(merged), rows, tmp_path, MergeLimits(max_kl_bfloat16=0.05))
    assert verdict.status == "pass", verdict.sentence


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_arithmetic_of_packs_passes_the_preflight(base: Base, rows: Path, method: Method) -> None:
    evidence = preflight.try_out(Preflight(base, Train(method=method), str(rows), 8), ignore)
    verdict = preflight_gate.judge(evidence, PreflightLimits())
    assert verdict.status == "pass", verdict.sentence
    assert (evidence.packed, evidence.dtype) == (True, "bfloat16")
