"""Rows: what tells conversations apart, which side they are held on, and how often they are taken."""

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from loragate.rows import Conversation, Message, Row, copies, position, unreadable


def conversation(*turns: str) -> Conversation:
    """Turns of user and assistant in turn."""
    return Conversation(tuple(Message(("user", "assistant")[n % 2], turn) for n, turn in enumerate(turns)))


def asked(question: str, answer: str = "yes", number: int = 1) -> Row:
    return Row("rows.jsonl", number, conversation(question, answer))


def row(*messages: Message, tools: str = "") -> Row:
    return Row("rows.jsonl", 1, Conversation(messages, tools))


def test_digest_tells_conversations_apart_and_ignores_their_place() -> None:
    one = asked("a?", "a", 1)
    assert one.digest == asked("a?", "a", 2).digest
    assert one.digest != asked("a?", "b").digest
    assert one.digest != row(Message("user", "a?a")).digest
    assert one.question_digest == asked("a?", "b").question_digest
    assert one.question_digest != asked("b?", "a").question_digest


def test_digest_covers_tool_calls_and_tools() -> None:
    called, other = (Message("assistant", "", f'{{"tool_calls": [{n}]}}') for n in (1, 2))
    user = Message("user", "a?")
    assert row(user, called).digest != row(user, other).digest
    assert row(user, called).question_digest == row(user, other).question_digest
    assert row(user, called).question_digest != row(user, called, tools="[1]").question_digest


def test_question_of_a_dialogue_is_all_before_its_last_answer() -> None:
    turns = conversation("a?", "a", "b?", "b").messages
    dialogue = row(*turns)
    assert dialogue.question_digest == row(*turns[:3]).question_digest
    assert dialogue.question_digest != asked("b?", "b").question_digest


def test_question_of_a_conversation_is_all_before_its_first_answer() -> None:
    system = Message("system", "Be brief.")
    turns = (system, *conversation("a?", "a", "b?", "b").messages)
    assert Conversation(turns, "[1]").question == Conversation(turns[:2], "[1]")


def test_plain_text_is_asked_for_its_second_half() -> None:
    text = Conversation((Message("text", "one two three four"),))
    assert text.question == Conversation((Message("text", "one two"),))
    assert text.answer == "three four"
    assert (Conversation((Message("text", "一二三四"),)).question.messages[0].content) == "一二"


def split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Rows by their side: (train, heldout)."""
    return [row for row in rows if position(row) >= share], [row for row in rows if position(row) < share]


questions = st.lists(st.text(max_size=4), max_size=30)
shares = st.floats(0.01, 0.99)


@given(questions, st.lists(st.text(max_size=4), max_size=30), shares)
def test_split_is_stable_when_rows_are_added(before: list[str], added: list[str], share: float) -> None:
    train, heldout = split([asked(q) for q in before], share)
    more_train, more_heldout = split([asked(q) for q in [*added, *before]], share)
    assert set(train) <= set(more_train)
    assert set(heldout) <= set(more_heldout)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.text(max_size=2)), max_size=30), shares)
def test_split_keeps_copies_of_a_question_on_one_side(pairs: list[tuple[str, str]], share: float) -> None:
    train, heldout = split([asked(question, answer) for question, answer in pairs], share)
    assert not {row.question_digest for row in train} & {row.question_digest for row in heldout}


@given(questions, shares)
def test_split_loses_no_row_and_keeps_the_order(listed: list[str], share: float) -> None:
    rows = [asked(question, number=number) for number, question in enumerate(listed)]
    train, heldout = split(rows, share)
    assert sorted([*train, *heldout], key=lambda row: row.number) == rows
    assert [row.number for row in train] == sorted(row.number for row in train)


@given(questions, shares, shares)
def test_split_with_a_larger_share_only_moves_rows_to_the_heldout_side(
    listed: list[str], one: float, other: float
) -> None:
    rows = [asked(question) for question in listed]
    small, large = (set(split(rows, share)[1]) for share in sorted((one, other)))
    assert small <= large


def test_split_holds_out_about_the_share_that_is_asked_for() -> None:
    _, heldout = split([asked(f"question {n}") for n in range(2000)], 0.1)
    four_sigma = 4 * math.sqrt(2000 * 0.1 * 0.9)
    assert abs(len(heldout) - 200) < four_sigma


def test_row_that_cannot_be_read_is_never_held_out() -> None:
    assert position(unreadable("a.jsonl", 1, "why")) == 1.0


@given(st.text(max_size=4), st.floats(0.01, 9))
def test_row_is_taken_as_often_as_its_weight_says_rounded_down_or_up(question: str, weight: float) -> None:
    assert copies(asked(question), weight) in {math.floor(weight), math.floor(weight) + 1}
    assert copies(asked(question), float(math.floor(weight))) == math.floor(weight)


@given(questions, st.floats(0.01, 3), st.floats(0.01, 3))
def test_larger_weight_takes_no_row_less_often(listed: list[str], one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert all(copies(asked(question), small) <= copies(asked(question), large) for question in listed)


def test_weights_take_about_their_share_of_rows() -> None:
    rows = [asked(f"question {n}") for n in range(2000)]
    four_sigma = 4 * math.sqrt(2000 * 0.25 * 0.75)
    assert abs(sum(copies(row, 0.25) for row in rows) - 500) < four_sigma
    assert abs(sum(copies(row, 2.25) for row in rows) - 4500) < four_sigma


def test_weight_and_held_out_share_choose_rows_independently() -> None:
    rows = [asked(f"question {n}") for n in range(4000)]
    held = sum(position(row) < 0.5 for row in rows if copies(row, 0.5))
    assert abs(held - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75)
