"""The wear of held-out rows: what counts as a look, what a look is worth, and that all of them together keep alpha."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.rows import Conversation, Message
from loragate.wear import MOST_MARKS, Look, look_at, mark, share_seen, spent, wear


def rows(*numbers: int) -> list[str]:
    return [f"{number:016x}" for number in numbers]


def seen(*looks: Look) -> list[tuple[str, Look]]:
    return [(f"2026-11-{day:02d}", look) for day, look in enumerate(looks, start=1)]


FOUR = rows(1, 2, 3, 4)
TODAY = look_at("today", FOUR)


# By hand: one more than the shares of today's rows that other looks before today's first one saw.
@pytest.mark.parametrize(
    ("earlier", "number", "looks", "since"),
    [
        ([], 1, 0, ""),
        ([look_at("a", FOUR)], 2, 1, "2026-11-01"),
        ([look_at("a", FOUR), look_at("b", FOUR)], 3, 2, "2026-11-01"),
        ([look_at("a", FOUR), look_at("a", FOUR)], 2, 1, "2026-11-01"),
        ([look_at("a", rows(5, 6)), look_at("b", FOUR)], 2, 1, "2026-11-02"),
        ([look_at("a", rows(4, 5, 6))], 1.25, 1, "2026-11-01"),
        ([look_at("a", rows(1, 2, 3, 4, 5, 6, 7, 8))], 2, 1, "2026-11-01"),
        ([look_at("a", rows(1, 2)), look_at("b", rows(3, 4))], 2, 2, "2026-11-01"),
        ([TODAY], 1, 0, ""),
        ([look_at("a", FOUR), TODAY, look_at("b", FOUR)], 2, 1, "2026-11-01"),
        ([look_at("today", rows(1, 2))], 1.5, 1, "2026-11-01"),
    ],
)
def test_looks_count_by_what_they_saw_of_today_s_rows(
    earlier: Sequence[Look], number: float, looks: int, since: str
) -> None:
    found = wear(TODAY, seen(*earlier), 0.05)
    assert (found.number, found.looks, found.since) == (number, looks, since)
    assert found.alpha == pytest.approx(0.05 / (number * (number + 1)), rel=1e-12)


@given(st.lists(st.sampled_from("abcdefghij"), max_size=60), st.floats(0.001, 0.2))
def test_all_looks_at_a_set_of_rows_together_get_less_than_alpha(challengers: list[str], alpha: float) -> None:
    history: list[tuple[str, Look]] = []
    got: dict[str, float] = {}
    for weights in challengers:
        look = look_at(weights, FOUR)
        found = wear(look, history, alpha).alpha
        assert got.setdefault(weights, found) == found  # judged again, the same weights get the same
        history.append(("", look))
    assert math.fsum(got.values()) < alpha
    assert list(got.values()) == sorted(got.values(), reverse=True)


@given(st.integers(1, 10_000))
def test_what_is_left_after_a_number_of_looks_is_known(number: int) -> None:
    total = math.fsum(spent(0.05, look) for look in range(1, number + 1))
    assert total == pytest.approx(0.05 * number / (number + 1), rel=1e-9)


row_sets = st.sets(st.integers(0, 40), min_size=1)


@given(row_sets, row_sets)
def test_share_is_that_of_today_s_rows(mine: set[int], theirs: set[int]) -> None:
    today, earlier = look_at("a", rows(*mine)), look_at("b", rows(*theirs))
    assert share_seen(today, earlier) == pytest.approx(len(mine & theirs) / len(mine))


@pytest.mark.parametrize("shared", [0, 2500, 10_000])
def test_share_of_large_sets_is_found_from_their_smallest_marks(shared: int) -> None:
    marks = [mark(Conversation((Message("user", str(number)),))) for number in range(30_000)]
    today, earlier = look_at("a", marks[:10_000]), look_at("b", marks[10_000 - shared : 30_000 - shared])
    assert len(today.marks) == MOST_MARKS
    assert share_seen(today, earlier) == pytest.approx(shared / 10_000, abs=0.03)
    assert share_seen(today, look_at("b", marks[:10_000])) == 1


def test_copies_of_a_row_are_one_and_order_does_not_matter() -> None:
    assert look_at("a", [*FOUR, *FOUR[::-1]]) == look_at("a", FOUR)


def said(*texts: str) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in zip(("user", "assistant"), texts, strict=True)))


def test_mark_is_that_of_what_is_said_white_space_and_capitals_apart() -> None:
    assert mark(said("What is  rain?\n", "Water.")) == mark(said("what is rain?", " water."))
    assert mark(said("What is rain?", "Water.")) != mark(said("What is rain?", "Wine."))
    assert mark(said("a b", "c")) != mark(said("a", "b c"))
