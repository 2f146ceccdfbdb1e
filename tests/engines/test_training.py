"""Training: the same bits from the same seed, also across a kill; exact accumulation; the best adapter released."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import judge_merge
from prepared import Adapter, describe, judged, pairs, render, request, train

from checks import quality as quality_gate
from loragate.answered import Answered
from loragate.artifact_work import MergeAdapter
from loragate.child import Progress, ignore
from loragate.comparison import ComparePaired
from loragate.config import Train
from loragate.engines import adapters, packing, paired, training
from loragate.engines.language_model import load_weights, read_examples, with_adapter
from loragate.engines.merging import merge
from loragate.engines.scoring import score
from loragate.errors import ConfigError
from loragate.limits import MergeLimits, QualityLimits
from loragate.perplexity import Nll, total
from loragate.work import Answer, Base, Model

SHORT: dict[str, Any] = {
    "r": 4,
    "alpha": 8,
    "learning_rate": 5e-3,
    "epochs": 2,
    "batch_size": 4,
    "checkpoint_steps": 2,
    "dtype": "float32",
}
"""12 steps in two epochs of 6, over 24 rows."""


def settings(**keys: Any) -> Train:
    return Train.model_validate(SHORT | keys)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(base, tmp_path_factory.mktemp("rows"), pairs(24), pairs(6, start=100))


@pytest.fixture(scope="module")
def straight(base: Base, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter trained with dropout and without interruption."""
    return train(base, rows, tmp_path_factory.mktemp("straight"), settings(dropout=0.2))


def heldout_rows(model: Model, rows: Path) -> tuple[Nll, ...]:
    return score(with_adapter(load_weights(model), model), read_examples(f"{rows}/heldout.jsonl"), 1000, ignore)


def heldout(model: Model, rows: Path) -> Nll:
    return total(heldout_rows(model, rows))


def test_training_passes_its_gate_and_lowers_the_held_out_loss(base: Base, rows: Path, straight: Adapter) -> None:
    verdict = judged(straight)
    assert verdict.status == "pass", verdict.sentence
    tuned = Model(base, str(straight.folder), dtype="float32")
    assert heldout(tuned, rows).mean < 0.99 * heldout(Model(base, dtype="float32"), rows).mean


def test_steps_that_could_not_be_captured_cost_a_warning(straight: Adapter) -> None:
    assert straight.trained.ways == ("packs", "attention row by row")  # dropout: nothing is shared, nothing fused
    verdict = judged(replace(straight, trained=replace(straight.trained, fallback="a synchronising model")))
    assert (verdict.status, verdict.findings[-1].rule) == ("warn", "steps_as_wanted")
    assert "no CUDA graph, a synchronising model; steps ran by packs, attention" in verdict.findings[-1].detail


def test_same_seed_gives_the_same_bytes(base: Base, rows: Path, tmp_path: Path, straight: Adapter) -> None:
    again = train(base, rows, tmp_path, settings(dropout=0.2))
    assert again.weights == straight.weights
    assert again.trained == straight.trained


def test_another_seed_gives_other_bytes(base: Base, rows: Path, tmp_path: Path, straight: Adapter) -> None:
    assert train(base, rows, tmp_path, settings(dropout=0.2, seed=1)).weights != straight.weights


class KilledError(Exception):
    """Stands for whatever ends a process."""


def killer(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.done == step:
            raise KilledError(f"step {step}")

    return report


def killed(base: Base, rows: Path, folder: Path, step: int) -> None:
    with pytest.raises(KilledError, match=r"^step \d+$"):
        training.train(request(base, rows, folder, settings(dropout=0.2)), killer(step))


@pytest.mark.parametrize(
    ("step", "resumed_from"),
    [(1, 0), (5, 4), (6, 4), (8, 6), (12, 10)],
    ids=["before a checkpoint", "in an epoch", "after an evaluation", "in the second epoch", "at the last step"],
)
def test_a_killed_training_goes_on_to_the_same_bytes(
    base: Base, rows: Path, tmp_path: Path, straight: Adapter, step: int, resumed_from: int
) -> None:
    killed(base, rows, tmp_path, step)
    assert not (tmp_path / "adapter").exists()
    resumed = train(base, rows, tmp_path, settings(dropout=0.2))
    assert resumed.trained.resumed_from == resumed_from
    assert resumed.weights == straight.weights
    assert resumed.trained.curve == straight.trained.curve
    assert resumed.trained.modules_without_gradient == straight.trained.modules_without_gradient


def test_a_training_killed_twice_goes_on_to_the_same_bytes(
    base: Base, rows: Path, tmp_path: Path, straight: Adapter
) -> None:
    killed(base, rows, tmp_path, 5)
    killed(base, rows, tmp_path, 9)
    resumed = train(base, rows, tmp_path, settings(dropout=0.2))
    assert (resumed.trained.resumed_from, resumed.weights) == (8, straight.weights)


@pytest.mark.parametrize(("left", "resumed_from"), [(0.5, 2), (0.0, 2), (1.0, 4)], ids=["half", "nothing", "all"])
def test_a_checkpoint_cut_short_is_passed_over(
    base: Base, rows: Path, tmp_path: Path, straight: Adapter, left: float, resumed_from: int
) -> None:
    killed(base, rows, tmp_path, 5)
    newest = max((tmp_path / "scratch").glob("checkpoint-*.pt"))
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(left * len(whole))])
    resumed = train(base, rows, tmp_path, settings(dropout=0.2))
    assert (resumed.trained.resumed_from, resumed.weights) == (resumed_from, straight.weights)
    assert resumed.trained.curve == straight.trained.curve


def test_a_finished_training_is_not_trained_on(base: Base, rows: Path, tmp_path: Path, straight: Adapter) -> None:
    train(base, rows, tmp_path, settings(dropout=0.2))
    again = train(base, rows, tmp_path, settings(dropout=0.2))
    assert (again.trained.resumed_from, again.weights) == (12, straight.weights)


def test_the_released_adapter_is_the_one_of_the_lowest_held_out_loss(base: Base, tmp_path: Path) -> None:
    contrary = [row | {"completion": f"{row['prompt']} No."} for row in pairs(6, start=100)]
    rows = render(base, tmp_path, pairs(8), contrary)
    adapter = train(base, rows, tmp_path, settings(epochs=8, learning_rate=3e-2, schedule="constant"))
    losses = {p.step: p.heldout_loss for p in adapter.trained.curve if p.heldout_loss is not None}
    assert list(losses) == list(range(2, 17, 2))
    best = min(losses, key=losses.__getitem__)
    assert best == adapter.trained.best_step < 16
    released = heldout(Model(base, str(adapter.folder), dtype="float32"), rows)
    assert released.mean == pytest.approx(losses[best], rel=1e-6)


def test_accumulation_does_not_change_loss_or_gradient(base: Base, rows: Path, tmp_path: Path) -> None:
    whole = train(base, rows, tmp_path / "whole", settings(forward_tokens=4096, epochs=1)).trained.curve
    parts = train(base, rows, tmp_path / "parts", settings(forward_tokens=96, epochs=1)).trained.curve
    assert parts[0].loss == pytest.approx(whole[0].loss, rel=1e-6)
    assert parts[0].grad_norm == pytest.approx(whole[0].grad_norm, rel=1e-4)
    assert [p.loss for p in parts] == pytest.approx([p.loss for p in whole], rel=1e-4)


# Per layer, in + out: q 64+64, k 64+32, v 64+32, o 64+64; gate 64+128, up 64+128, down 128+64. Rank 4, two layers.
COUNTS = {("q_proj", "k_proj", "v_proj", "o_proj"): (8, 4 * 448 * 2), ("all-linear",): (14, 4 * 1024 * 2)}


@pytest.mark.parametrize("modules", COUNTS, ids=" ".join)
def test_trainable_count_is_the_one_computed_by_hand(
    base: Base, rows: Path, tmp_path: Path, modules: tuple[str, ...]
) -> None:
    adapter = train(base, rows, tmp_path, settings(target_modules=modules, epochs=1))
    trained, evidence = adapter.trained, adapters.inspect_adapter(str(adapter.folder), ignore)
    counted = (trained.trainable, trained.predicted_trainable, evidence.parameters)
    assert (trained.modules, counted) == (COUNTS[modules][0], (COUNTS[modules][1],) * 3)
    assert trained.modules_without_gradient == evidence.zero_modules == ()


def test_an_unknown_target_module_is_a_fault_of_the_run_file(base: Base, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.target_modules \['query'\]: .*not found"):
        train(base, rows, tmp_path, settings(target_modules=("query",)))


def test_the_saved_adapter_names_no_path_of_this_machine(base: Base, straight: Adapter) -> None:
    text = (straight.folder / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(text)["base_model_name_or_path"] == ""
    assert str(Path(base.path).parent) not in text


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    cosine = settings(learning_rate=1.0, warmup_share=0.2, schedule="cosine")
    rates = [training.learning_rate(cosine, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.5)  # half of the eight steps after the warm-up
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


def test_rows_do_not_meet_again_in_the_next_epoch(rows: Path) -> None:
    examples = read_examples(f"{rows}/train.jsonl")
    steps = [frozenset(step) for step in training.plan(examples, settings(batch_size=4))]
    assert not set(steps[:6]) & set(steps[6:])


def test_every_epoch_takes_every_row_once_in_an_order_of_its_own(rows: Path) -> None:
    examples = read_examples(f"{rows}/train.jsonl")
    steps = list(training.plan(examples, settings(batch_size=5)))
    first, second = steps[:5], steps[5:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(24))
    assert first != second


def test_batches_of_packs_have_about_as_many_tokens_as_each_other(rows: Path) -> None:
    examples = [replace(read_examples(f"{rows}/train.jsonl")[0], ids=(1,) * (8 + n * n % 90)) for n in range(160)]
    tokens = [sum(len(examples[i].ids) for i in batch) for batch in training.plan(examples, settings(batch_size=10))]
    assert len(tokens) == 2 * 16
    assert max(tokens) <= 1.25 * min(tokens)
    padded = training.plan(examples, settings(batch_size=10), packed=False)
    spread = [max(len(examples[i].ids) for i in b) - min(len(examples[i].ids) for i in b) for b in padded]
    assert max(spread) <= 30


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_layers_computed_again_change_nothing(base: Base, rows: Path, tmp_path: Path, method: str) -> None:
    for dropout in (0.0, 0.2):
        keys = {"method": method, "dropout": dropout, "epochs": 1}
        kept = train(base, rows, tmp_path / f"kept {dropout}", settings(**keys))
        folder = tmp_path / f"again {dropout}"
        again = training.train(replace(request(base, rows, folder, settings(**keys)), checkpointing=True), ignore)
        assert "gradient checkpointing" in again.ways
        assert again.curve == kept.trained.curve
        assert Adapter(again, folder / "adapter", folder / "scratch", kept.settings).weights == kept.weights


def test_training_ends_where_the_held_out_loss_has_not_fallen_for_long(base: Base, tmp_path: Path) -> None:
    contrary = [row | {"completion": f"{row['prompt']} No."} for row in pairs(6, start=100)]
    rows = render(base, tmp_path, pairs(8), contrary)
    keys = {"epochs": 12, "learning_rate": 0.3, "schedule": "constant", "early_stopping": 2}
    stopped = train(base, rows, tmp_path / "stopped", settings(**keys))
    losses = [p.heldout_loss for p in stopped.trained.curve if p.heldout_loss is not None]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 12
    assert stopped.trained.best_step == 2 * (best + 1)
    again = train(base, rows, tmp_path / "stopped", settings(**keys))
    assert (again.trained.curve, again.weights) == (stopped.trained.curve, stopped.weights)
    straight = train(base, rows, tmp_path / "straight", settings(**keys | {"early_stopping": 0}))
    assert len(straight.trained.curve) == 24


def test_noise_on_the_embeddings_trains_to_the_same_bytes_after_a_kill(
    base: Base, rows: Path, tmp_path: Path, straight: Adapter
) -> None:
    keys = {"neftune_alpha": 5.0}
    noisy = train(base, rows, tmp_path / "noisy", settings(**keys))
    assert noisy.weights != straight.weights
    with pytest.raises(KilledError):
        training.train(request(base, rows, tmp_path / "killed", settings(**keys)), killer(7))
    resumed = train(base, rows, tmp_path / "killed", settings(**keys))
    assert (resumed.trained.resumed_from, resumed.weights) == (6, noisy.weights)
    assert resumed.trained.curve == noisy.trained.curve


@pytest.mark.parametrize("packed", [True, False])
def test_noise_is_uniform_by_length_and_width_and_only_in_training(
    base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    model = adapters.adapted_model(base, settings())
    given: list[torch.Tensor] = []
    inner = model.get_base_model()
    monkeypatch.setattr(packing, "can_pack", lambda *_: packed)
    examples = read_examples(f"{rows}/train.jsonl")[:2]
    passes = packing.passes_for(model, examples, 1000, noise=6.0)
    assert not passes.share
    inner.model.register_forward_pre_hook(lambda _, __, more: given.append(more.get("inputs_embeds")), with_kwargs=True)
    unit = passes.unit(sorted(examples, key=lambda example: example.ids))
    passes.unit_nats(model, unit)
    embedding = inner.get_input_embeddings()
    lengths = [len(example.ids) for example in sorted(examples, key=lambda example: example.ids)]
    clean = [embedding(torch.tensor(e.ids)) for e in sorted(examples, key=lambda example: example.ids)]
    noisy = given[0][0].split(lengths) if packed else [row[:n] for row, n in zip(given[0], lengths, strict=True)]
    for one, other, length in zip(clean, noisy, lengths, strict=True):
        scale = 6.0 / (length * embedding.embedding_dim) ** 0.5
        noise = (other - one).detach()
        assert 0.9 * scale < float(noise.abs().max()) <= scale * (1 + 1e-5)
        assert abs(float(noise.mean())) < 0.1 * scale
    passes.unit_nats(model.eval(), unit)
    assert given[1] is None


def test_a_learning_rate_that_overflows_is_refused_by_the_training_gate(base: Base, rows: Path, tmp_path: Path) -> None:
    adapter = train(base, rows, tmp_path, settings(learning_rate=1e30))
    verdict = judged(adapter)
    assert {f.rule for f in verdict.findings if not f.passed} == {
        "loss_finite",
        "heldout_loss_finite",
        "weights_finite",
    }
    assert len(adapter.trained.curve) < 12  # it ends at the first loss that is not finite


def test_a_learning_rate_of_a_million_forgets_everything_which_the_quality_gate_refuses(
    base: Base, rows: Path, tmp_path: Path, straight: Adapter
) -> None:
    # Squares overflow in the norm before the head: the loss stays finite, every token is equally likely. The random
    # base knows less than even that, so it is held against a model that has learnt something.
    adapter = train(base, rows, tmp_path, settings(learning_rate=1e6))
    after = heldout_rows(Model(base, str(adapter.folder), dtype="float32"), rows)
    assert total(after).perplexity == pytest.approx(base.vocabulary, rel=1e-3)
    before = heldout_rows(Model(base, str(straight.folder), dtype="float32"), rows)
    limits = QualityLimits()
    asked = ComparePaired(before, after, limits.max_perplexity_ratio, limits.alpha, limits.draws, seed=0)
    found, said = paired.compare(asked, ignore), Answered((Answer("a", True),), ("a",), ("",))
    general = replace(found, ratio=1.0, low=1.0, high=1.0, p_value=0.0, limit=limits.max_general_ratio)
    verdict = quality_gate.judge(found, general, said, adapter.trained, limits)
    assert verdict.status == "fail", verdict.sentence
    assert {f.rule for f in verdict.findings if not f.passed} == {"perplexity_ratio"}


@pytest.fixture(scope="module")
def qlora(base: Base, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return train(base, rows, tmp_path_factory.mktemp("qlora"), settings(method="qlora", target_modules=("all-linear",)))


def test_qlora_trains_on_the_cpu_and_reaches_every_module(qlora: Adapter) -> None:
    curve = qlora.trained.curve
    assert curve[-1].loss < curve[0].loss
    assert (qlora.trained.modules, qlora.trained.modules_without_gradient) == (14, ())
    verdict = judged(qlora)
    assert verdict.status == "pass", verdict.sentence


def test_a_merged_qlora_model_equals_the_one_that_was_trained(
    base: Base, rows: Path, tmp_path: Path, qlora: Adapter
) -> None:
    model = Model(base, str(qlora.folder), quantized=True, dtype="float32")
    merge(MergeAdapter(model, str(tmp_path / "merged")), ignore)
    verdict = judge_merge(model, tmp_path / "merged", rows / "heldout.jsonl", tmp_path, MergeLimits())
    assert verdict.status == "pass", verdict.sentence
    assert next(finding.value for finding in verdict.findings if finding.rule == "kl") < 1e-6
