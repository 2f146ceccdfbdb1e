"""On a CUDA device: bfloat16 is chosen, LoRA and QLoRA train, and merged weights are what was trained."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from checks import merge, training
from checks import preflight as preflight_gate
from loragate.child import ignore
from loragate.config import Train
from loragate.engines import adapters, merging, preflight, scoring
from loragate.engines import training as trainer
from loragate.engines.language_model import choose_dtype
from loragate.limits import MergeLimits, PreflightLimits, TrainingLimits
from loragate.perplexity import total
from loragate.rendering import Example, rendered_line
from loragate.rows import Conversation
from loragate.work import Base, CompareMerged, MeasureModel, MergeAdapter, Method, Model, Preflight, TrainAdapter

pytestmark = pytest.mark.gpu

VOCABULARY = 512
WORDS = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A random Llama of four layers with a word-level tokenizer."""
    assert torch.cuda.is_available(), "these tests need a CUDA device; `make test` is for machines without one"
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(folder)  # noqa: S106
    return Base(str(folder), "", False, (1,), 1, "", VOCABULARY, 0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that use few of the words: easy to learn, impossible to know beforehand."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for number in range(64):
        length = random.Random(number).randint(16, 48)
        ids = [(number + 7 * position) % WORDS for position in range(length)]
        example = Example(tuple(ids), ((4, length),), turns=1, stopped_turns=1, rendered_tokens=length)
        lines.append(rendered_line(example, Conversation(()), f"rows:{number}"))
    path.write_bytes(b"".join(lines))
    return path


def test_bfloat16_is_chosen_on_the_device() -> None:
    assert choose_dtype("auto") == torch.bfloat16


def test_scores_on_the_device_equal_those_of_the_cpu(base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = MeasureModel(Model(base, dtype="float32"), str(rows), (), 1, 4096)
    on_device = total(scoring.measure(request, ignore).rows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = total(scoring.measure(request, ignore).rows)
    assert on_device.tokens == on_cpu.tokens
    assert on_device.nats == pytest.approx(on_cpu.nats, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_training_and_merging_pass_their_gates(base: Base, rows: Path, tmp_path: Path, method: Method) -> None:
    adapter, merged = str(tmp_path / "adapter"), str(tmp_path / "merged")
    settings = Train(method=method, learning_rate=5e-3, epochs=8)
    request = TrainAdapter(base, settings, str(rows), str(rows), adapter, str(tmp_path / "scratch"))
    trained = trainer.train(request, ignore)
    assert training.judge(trained, adapters.inspect_adapter(adapter, ignore), TrainingLimits()).status == "pass"
    assert trained.curve[-1].loss < 0.75 * trained.curve[0].loss
    assert trained.dtype == "bfloat16"
    model = Model(base, adapter, quantized=method == "qlora")
    merging.merge(MergeAdapter(model, merged), ignore)
    evidence = merging.compare(CompareMerged(model, merged, str(rows), 16), ignore)
    verdict = merge.judge(evidence, MergeLimits(max_kl_bfloat16=0.05))
    assert verdict.status == "pass", verdict.sentence


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_arithmetic_of_packs_passes_the_preflight(base: Base, rows: Path, method: Method) -> None:
    evidence = preflight.try_out(Preflight(base, Train(method=method), str(rows), 8), ignore)
    verdict = preflight_gate.judge(evidence, PreflightLimits())
    assert verdict.status == "pass", verdict.sentence
    assert (evidence.packed, evidence.dtype) == (True, "bfloat16")
