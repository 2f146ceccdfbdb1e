"""Rendered rows are what the model's own template says, and every row that cannot be taught is named by its place."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import Raw, describe, facts_of, pairs, read, render, render_files, write

from loragate.engines.language_model import encoder_of, load_tokenizer, template_of
from loragate.rendering import Example
from loragate.rendering import render as render_messages
from loragate.rows import Message
from loragate.work import Base

STOP = "<|im_end|>"
CONVERSATIONS = {
    "one turn": ["user: What is rain?", "assistant: Water."],
    "system first": ["system: Be brief.", "user: Why?", "assistant: Because."],
    "three turns": ["user: a", "assistant: b", "user: c", "assistant: d", "user: e", "assistant: f"],
    "a tool's result": ["user: 2+2?", "assistant: call add", "tool: 4", "assistant: It is 4."],
    "two tools' results": ["user: 2+2, 1+1?", "assistant: call", "tool: 4", "tool: 2", "assistant: 4 and 2."],
    "many scripts": ["user: Größe? 中文 🌈", "assistant: Привет,  мир!\n\n- ① ½\n"],
    "a stop token inside": [f"user: say {STOP}", f"assistant: here: {STOP} and on"],
}


def turns(texts: list[str]) -> tuple[Message, ...]:
    return tuple(Message(*text.split(": ", 1)) for text in texts)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(scope="module")
def tokenizer(base: Base) -> Any:
    return load_tokenizer(base)


def rendered(tokenizer: Any, base: Base, messages: tuple[Message, ...]) -> Example:
    stop_ids = frozenset(base.stop_ids)
    encode = encoder_of(tokenizer)
    return render_messages(
        messages, template_of(tokenizer), lambda text: encode([text])[0], stop_ids=stop_ids, max_tokens=10_000
    )


def by_transformers(tokenizer: Any, messages: tuple[Message, ...], *, prompt: bool = False) -> list[int]:
    """The ids that transformers makes of a conversation, in one go."""
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return list(tokenizer.apply_chat_template(plain, add_generation_prompt=prompt, tokenize=True, return_dict=False))


@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_ids_are_those_of_the_chat_template_token_for_token(tokenizer: Any, base: Base, texts: list[str]) -> None:
    messages = turns(texts)
    assert list(rendered(tokenizer, base, messages).ids) == by_transformers(tokenizer, messages)


@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_ids_begin_with_those_of_every_prompt(tokenizer: Any, base: Base, texts: list[str]) -> None:
    messages = turns(texts)
    ids = list(rendered(tokenizer, base, messages).ids)
    for end, message in enumerate(messages):
        if message.role == "assistant":
            prompt = by_transformers(tokenizer, messages[:end], prompt=True)
            assert ids[: len(prompt)] == prompt


@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_mask_covers_every_answer_and_its_stop_token_and_nothing_else(
    tokenizer: Any, base: Base, texts: list[str]
) -> None:
    messages = turns(texts)
    example = rendered(tokenizer, base, messages)
    taught = [token for token, is_taught in zip(example.ids, example.mask, strict=True) if is_taught]
    answers = [m.content for m in messages if m.role == "assistant"]
    assert tokenizer.decode(taught, clean_up_tokenization_spaces=False) == "".join(a + STOP for a in answers)
    assert example.stopped_turns == example.turns == len(answers)


LETTERS = st.characters(codec="utf-8")


@settings(max_examples=60, deadline=None)
@given(question=st.text(LETTERS, max_size=40), answer=st.text(LETTERS, max_size=40))
def test_ids_and_mask_hold_for_any_text(tokenizer: Any, base: Base, question: str, answer: str) -> None:
    # White space at an answer's start could join the newline before it in one go; in serving it is never in one go.
    messages = (Message("user", question), Message("assistant", f"A{answer}"))
    example = rendered(tokenizer, base, messages)
    prompt = by_transformers(tokenizer, messages[:1], prompt=True)
    assert list(example.ids) == by_transformers(tokenizer, messages)
    assert list(example.ids[: len(prompt)]) == prompt
    assert example.mask == tuple(len(prompt) <= i < len(example.ids) - 1 for i in range(len(example.ids)))


def ids_of(folder: Path) -> list[Any]:
    return [(row["ids"], row["spans"]) for row in read(folder / "train.jsonl")]


def places_of(folder: Path) -> list[str]:
    return [fact["place"] for fact in facts_of(folder) if fact["side"] == "train"]


def test_a_parquet_file_is_rendered_like_the_same_rows_as_json(base: Base, tmp_path: Path) -> None:
    asked = [{"messages": [{"role": r, "content": c} for r, c in (("user", "é\n?"), ("assistant", "1\n2"))]}] * 3
    heldout = write(tmp_path / "heldout.jsonl", asked[:1])
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "train.parquet")
    table = render_files(base, tmp_path / "parquet", tmp_path / "train.parquet", heldout)
    lines = render_files(base, tmp_path / "jsonl", write(tmp_path / "train.jsonl", asked), heldout)
    assert ids_of(table) == ids_of(lines)
    assert places_of(table) == ["train.parquet:1", "train.parquet:2", "train.parquet:3"]


def test_a_csv_file_is_rendered_like_the_same_rows_as_json(base: Base, tmp_path: Path) -> None:
    asked = [{"instruction": 'Say "a",\nthen b', "input": "", "output": "a; b"}]
    asked += [{"instruction": "Add", "input": "1, 2", "output": "3"}]
    heldout = write(tmp_path / "heldout.jsonl", asked[:1])
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, asked[0])
        writer.writeheader()
        writer.writerows(asked)
    table = render_files(base, tmp_path / "csv", tmp_path / "train.csv", heldout)
    lines = render_files(base, tmp_path / "jsonl", write(tmp_path / "train.jsonl", asked), heldout)
    assert ids_of(table) == ids_of(lines)
    assert places_of(table) == ["train.csv:3", "train.csv:4"]  # the lines in which the rows end


def fact(base: Base, folder: Path, rows: list[Raw], max_tokens: int = 96) -> Raw:
    """Facts about the second training row."""
    rendered_rows = render(base, folder, rows, pairs(2, start=100), max_tokens)
    facts = [fact for fact in facts_of(rendered_rows) if fact["side"] == "train"]
    assert [f["place"] for f in facts] == [f"train.jsonl:{n}" for n in range(1, len(rows) + 1)]
    found: Raw = facts[1]
    return found


def conversation(*texts: str) -> Raw:
    return {"messages": [{"role": m.role, "content": m.content} for m in turns(list(texts))]}


GOOD = conversation("user: a", "assistant: b")
BAD_ROLES = {
    "two questions": (["user: a", "user: b", "assistant: c"], "turn 2 is from 'user', must be from 'assistant'"),
    "answer first": (["assistant: a", "user: b"], "turn 1 is from 'assistant', must be from 'user'"),
    "late system": (["user: a", "assistant: b", "system: c"], "a system message stands after the first place"),
    "unknown role": (["human: a", "assistant: b"], "unknown role 'human'"),
    "no answer": (["user: a"], "the last message is from 'user'; a row must end with 'assistant'"),
    "only a system message": (["system: a"], "the last message is from 'system'"),
}


@pytest.mark.parametrize(("texts", "said"), BAD_ROLES.values(), ids=BAD_ROLES)
def test_facts_name_a_row_whose_roles_are_out_of_order(base: Base, tmp_path: Path, texts: list[str], said: str) -> None:
    found = fact(base, tmp_path, [GOOD, conversation(*texts), GOOD])
    assert said in found["roles_problem"]
    assert (found["place"], found["problem"], found["supervised"]) == ("train.jsonl:2", "", 0)


def test_facts_name_a_row_without_an_answer(base: Base, tmp_path: Path) -> None:
    found = fact(base, tmp_path, [*pairs(1), {"prompt": "And this?"}])
    assert found["problem"] == 'not a row of format prompt_completion: "completion" is missing; it must be a text'
    assert (found["place"], found["answer_chars"], found["tokens"]) == ("train.jsonl:2", 0, 0)


def test_facts_count_white_space_as_no_answer(base: Base, tmp_path: Path) -> None:
    found = fact(base, tmp_path, [*pairs(1), {"prompt": "And this?", "completion": " \n"}])
    assert (found["problem"], found["answer_chars"], found["lost_stops"]) == ("", 0, 0)


def test_a_row_that_cannot_be_taught_is_in_the_facts_and_not_among_the_examples(base: Base, tmp_path: Path) -> None:
    rows = render(base, tmp_path, [GOOD, conversation("user: a"), GOOD], [GOOD])
    assert len(read(rows / "train.jsonl")) == 2
    assert len(facts_of(rows)) == 4


def test_truncation_that_cuts_the_stop_token_loses_it(base: Base, tmp_path: Path) -> None:
    whole = fact(base, tmp_path / "whole", pairs(2))
    assert (whole["truncated"], whole["lost_stops"]) == (False, 0)
    only_newline = fact(base, tmp_path / "newline", pairs(2), whole["tokens"] - 1)
    assert (only_newline["truncated"], only_newline["lost_stops"]) == (True, 0)
    stop_too = fact(base, tmp_path / "stop", pairs(2), whole["tokens"] - 2)
    assert (stop_too["truncated"], stop_too["lost_stops"]) == (True, 1)
    assert stop_too["supervised"] == whole["supervised"] - 1


def with_template(tiny_model: Path, folder: Path, template: str) -> Base:
    """A copy of the tiny model with another chat template."""
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return describe(folder)


PLAIN = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def test_a_template_that_rewrites_history_is_named_with_what_it_rewrites(tiny_model: Path, tmp_path: Path) -> None:
    base = with_template(tiny_model, tmp_path / "model", "{{ messages | length }} turns\n" + PLAIN)
    found = fact(base, tmp_path, [GOOD, GOOD])
    assert found["problem"].startswith("the chat template rewrites earlier text when message 2 is added: '1 turns")
    assert (found["place"], found["tokens"]) == ("train.jsonl:2", 0)


def test_a_template_that_raises_is_a_problem_of_the_row(tiny_model: Path, tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
    base = with_template(tiny_model, tmp_path / "model", template)
    found = fact(base, tmp_path, [GOOD, conversation("system: s", "user: a", "assistant: b")])
    assert found["problem"] == "the chat template cannot render it: no system role"


def test_a_template_without_stop_token_loses_every_stop(tiny_model: Path, tmp_path: Path) -> None:
    base = with_template(tiny_model, tmp_path / "model", PLAIN)
    row = conversation("user: a", "assistant: b", "user: c", "assistant: d")
    found = fact(base, tmp_path, [row, row])
    assert (found["problem"], found["lost_stops"], found["truncated"]) == ("", 2, False)


def test_probes_are_the_held_out_texts_and_the_odd_ones_with_their_ids(
    base: Base, tokenizer: Any, tmp_path: Path
) -> None:
    rows = render(base, tmp_path, pairs(2), pairs(2, start=100))
    probes = read(rows / "probes.jsonl")
    assert [p["text"] for p in probes if p["of_a_row"]] == [t for pair in pairs(2, start=100) for t in pair.values()]
    assert all([p["ids"]] == encoder_of(tokenizer)([p["text"]]) for p in probes)
    assert sum(not p["of_a_row"] for p in probes) == 16
