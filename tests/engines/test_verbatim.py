"""Passages that answers repeat from training answers: found wherever they stand, and none that were given."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.child import ignore
from loragate.engines.verbatim import find_verbatim
from loragate.rendering import Example, rendered_line
from loragate.rows import TEXT, Conversation, Message
from loragate.work import FindVerbatim

NOTHING = Example((), (), 0, 0, 0)


def taught(folder: Path, *conversations: Conversation) -> str:
    path = folder / "train.jsonl"
    path.write_bytes(b"".join(rendered_line(NOTHING, conversation, "train.jsonl:1") for conversation in conversations))
    return str(path)


def row(question: str, answer: str, *, learnt: bool = True) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer, taught=learnt)))


def numbered(start: int, end: int) -> str:
    return " ".join(f"w{n}" for n in range(start, end))


@pytest.mark.parametrize(
    ("conversation", "given", "found"),
    [
        (row("q", numbered(0, 30)), (), True),
        (row("q", "W4, w5 – w6;\nw7 " + numbered(8, 14)), (), True),  # case, signs and lines do not matter
        (row("q", numbered(0, 13)), (), False),  # nine words in common, ten are looked for
        (row(numbered(0, 30), "no"), (), False),  # stands in a question
        (row("q", numbered(0, 30), learnt=False), (), False),
        (Conversation((Message(TEXT, numbered(0, 30)),)), (), True),
        (row("q", numbered(0, 30)), (numbered(0, 40),), False),
        (row("q", numbered(0, 30)), (numbered(0, 10),), True),
    ],
)
def test_passage_of_a_training_answer_is_found_unless_it_was_given(
    tmp_path: Path, conversation: Conversation, given: tuple[str, ...], found: bool
) -> None:
    train = taught(tmp_path, row("x", "y"), conversation)
    answers = (numbered(4, 20), "nothing of it")
    passages = find_verbatim(FindVerbatim(train, answers, (given, ()), 10), ignore)
    assert [bool(passage) for passage in passages] == [found, False]
    assert not passages[0] or (passages[0] in numbered(0, 40) and len(passages[0].split()) == 10)


def test_no_answers_hold_no_passages(tmp_path: Path) -> None:
    assert find_verbatim(FindVerbatim(taught(tmp_path), (), (), 10), ignore) == ()


@settings(max_examples=200, deadline=None)
@given(st.integers(8, 30), st.integers(0, 60), st.integers(0, 90), st.integers(0, 60), st.integers(0, 90))
def test_equals_looking_at_every_run_of_words(
    tmp_path_factory: pytest.TempPathFactory, words: int, start: int, length: int, other: int, taught_length: int
) -> None:
    answer, said = numbered(start, start + length), numbered(other, other + taught_length)
    train = taught(tmp_path_factory.mktemp("rows"), row("q", json.dumps(said)))
    common = min(start + length, other + taught_length) - max(start, other)
    (passage,) = find_verbatim(FindVerbatim(train, (answer,), ((),), words), ignore)
    assert bool(passage) == (common >= words)
