"""General rows: those of data.general, and what the base itself says, drawn from nothing but its own distribution."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prepared import asked, describe, pairs, read, render, write
from transformers import AutoTokenizer

from loragate.child import ignore
from loragate.engines import examples
from loragate.engines.general import draw
from loragate.engines.language_model import load_weights, read_examples
from loragate.engines.scoring import measure
from loragate.errors import DataFileError
from loragate.files import DataFile
from loragate.general_questions import QUESTIONS
from loragate.work import Base, DrawAnswers, MeasureModel, Model


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


def drawn(base: Base, folder: Path, questions: tuple[str, ...] = QUESTIONS, tokens: int = 6, seed: int = 0) -> Path:
    folder.mkdir()
    assert draw(DrawAnswers(Model(base, dtype="float32"), questions, tokens, seed, str(folder)), ignore) == len(
        questions
    )
    return folder / "general.jsonl"


def test_questions_differ_and_are_many() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS) == 40


def test_same_seed_draws_the_same_answers_and_another_one_others(base: Base, tmp_path: Path) -> None:
    first, again, other = (drawn(base, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_prompts_are_those_of_held_out_rows_and_answers_alone_are_scored(base: Base, tmp_path: Path) -> None:
    rows = [{"prompt": question, "completion": "Well."} for question in QUESTIONS]
    rendered = read_examples(str(render(base, tmp_path, pairs(2), rows) / "heldout.jsonl"))
    for ours, theirs in zip(read_examples(str(drawn(base, tmp_path / "drawn"))), rendered, strict=True):
        ((start, end),) = ours.spans
        assert ours.ids[:start] == theirs.ids[: theirs.spans[0][0]]
        assert 1 <= end - start <= 6
        assert end == len(ours.ids)


def test_answers_end_with_the_stop_token_that_was_drawn(base: Base, tmp_path: Path) -> None:
    every_third = replace(base, stop_ids=tuple(range(0, base.vocabulary, 3)))
    found = read_examples(str(drawn(every_third, tmp_path / "drawn", tokens=12)))
    ends = [example.ids[-1] % 3 == 0 for example in found]
    assert ends == [bool(example.stopped_turns) for example in found]
    assert any(ends)
    for example in found:
        assert all(token % 3 for token in example.ids[example.spans[0][0] : -1])


def test_settings_that_a_model_brings_along_cut_nothing_off(base: Base, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "greedy"
    shutil.copytree(tiny_model, folder)
    settings = {"do_sample": True, "top_k": 1, "temperature": 0.01, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ours = drawn(describe(folder), tmp_path / "a")
    assert ours.read_bytes() == drawn(base, tmp_path / "b").read_bytes()


def sharpened(base: Base, folder: Path, noise: float) -> Base:
    """The tiny model with likely and unlikely tokens, as a trained one has them, and with noise on its weights."""
    model = load_weights(Model(base, dtype="float32"))
    torch.manual_seed(1)
    for weights in model.parameters():
        weights.data += noise * weights.data.std(correction=0) * torch.randn_like(weights)
    model.model.norm.weight.data *= 10
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base.path).save_pretrained(folder)
    return replace(base, path=str(folder))


@torch.inference_mode()
def first_log_p(base: Base, question: str) -> torch.Tensor:
    """Log probabilities of the first token of the answer."""
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    turns = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    logits_V = load_weights(Model(base, dtype="float32"))(input_ids=ids).logits[0, -1]
    return torch.log_softmax(logits_V.double(), dim=-1)


def test_mean_log_ratio_on_drawn_answers_is_the_divergence(base: Base, tmp_path: Path) -> None:
    """E[ln p - ln q] under p = KL(p || q): held against the sum over the whole vocabulary, within 4 standard errors."""
    models = (sharpened(base, tmp_path / "p", noise=0.0), sharpened(base, tmp_path / "q", noise=0.3))
    question = QUESTIONS[0]
    rows = drawn(models[0], tmp_path / "drawn", questions=(question,) * 400, tokens=1)
    before, after = (
        measure(MeasureModel(Model(m, dtype="float32"), str(rows), (), 1, 4096, str(tmp_path), {}), ignore).rows
        for m in models
    )
    log_ratios = torch.tensor([a.nats - b.nats for b, a in zip(before, after, strict=True)], dtype=torch.float64)
    log_p_V, log_q_V = (first_log_p(model, question) for model in models)
    divergence = float((log_p_V.exp() * (log_p_V - log_q_V)).sum())
    assert 0.1 < divergence < 3
    assert abs(float(log_ratios.mean()) - divergence) < 4 * float(log_ratios.std()) / 20


def general(base: Base, folder: Path, rows: list[dict[str, str]], max_tokens: int = 96) -> Path:
    train, held = write(folder / "train.jsonl", pairs(4)), write(folder / "heldout.jsonl", pairs(3, start=50))
    named = [("train.jsonl", "train", train), ("heldout.jsonl", "heldout", held)]
    named.append(("general.jsonl", "general", write(folder / "general.jsonl", rows)))
    out = folder / "rendered"
    out.mkdir()
    files = [DataFile(str(path), name, side) for name, side, path in named]  # type: ignore[arg-type]
    examples.prepare(asked(base, out, *files, max_tokens=max_tokens), ignore)
    return out


def test_rows_of_data_general_are_rendered_like_held_out_ones_and_no_fact_is_about_them(
    base: Base, tmp_path: Path
) -> None:
    out = general(base, tmp_path, pairs(3, start=50))
    ours, theirs = read(out / "general.jsonl"), read(out / "heldout.jsonl")
    assert [row["place"] for row in ours] == [f"general.jsonl:{n}" for n in (1, 2, 3)]
    assert [(row["ids"], row["spans"]) for row in ours] == [(row["ids"], row["spans"]) for row in theirs]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "What is rain?"}, "general.jsonl:2: data.general: "),
        ({"prompt": "What is rain? " * 60, "completion": "Water."}, "no answer is left within data.max_tokens"),
    ],
)
def test_general_row_that_cannot_be_scored_is_refused(
    base: Base, tmp_path: Path, row: dict[str, str], said: str
) -> None:
    with pytest.raises(DataFileError, match=r"data\.holdout_against") as error:
        general(base, tmp_path, [*pairs(1, start=90), row])
    assert said in str(error.value)


def test_without_general_rows_their_file_is_empty(base: Base, tmp_path: Path) -> None:
    assert (render(base, tmp_path, pairs(2), pairs(2, start=9)) / "general.jsonl").read_bytes() == b""
