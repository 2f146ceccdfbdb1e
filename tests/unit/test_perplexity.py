"""Perplexity: sums first, one division, and nothing counted is no number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.perplexity import Nll, ratio, total

rows = st.builds(Nll, st.floats(0, 1e6), st.integers(0, 10_000))


def test_perplexity_is_exp_of_nats_per_token() -> None:
    assert Nll(3 * math.log(2), 3).perplexity == pytest.approx(2.0, rel=1e-15)
    assert Nll(0.0, 5).perplexity == 1.0
    assert Nll(6.0, 4).mean == 1.5


def test_no_tokens_give_nan_and_not_a_perfect_score() -> None:
    assert math.isnan(Nll(0.0, 0).mean)
    assert math.isnan(Nll(0.0, 0).perplexity)
    assert math.isnan(total([]).perplexity)


def test_perplexity_too_large_for_a_float_is_infinite() -> None:
    assert Nll(710.0, 1).perplexity == math.inf
    assert Nll(math.inf, 1).perplexity == math.inf
    assert math.isnan(Nll(math.nan, 1).perplexity)


def test_total_weighs_tokens_and_not_rows() -> None:
    summed = total([Nll(2.0, 1), Nll(1.0, 3)])
    assert summed == Nll(3.0, 4)
    assert summed.mean == 0.75


@given(st.lists(rows).flatmap(lambda listed: st.tuples(st.just(listed), st.permutations(listed))))
def test_total_does_not_depend_on_order(orders: tuple[list[Nll], list[Nll]]) -> None:
    assert total(orders[0]) == total(orders[1])


@given(st.lists(rows))
def test_total_counts_rows_given_by_an_iterator(listed: list[Nll]) -> None:
    assert total(iter(listed)) == total(listed)


def test_total_keeps_what_adding_one_by_one_would_round_away() -> None:
    assert total([Nll(1e16, 1), *[Nll(1.0, 1)] * 10]).nats == 1e16 + 10


def test_ratio_is_perplexity_after_over_before() -> None:
    assert ratio(Nll(math.log(4), 1), Nll(2 * math.log(2), 2)) == pytest.approx(0.5, rel=1e-15)


@pytest.mark.parametrize("bad", [Nll(0.0, 0), Nll(math.nan, 1), Nll(math.inf, 1), Nll(1e6, 1), Nll(-1e6, 1)])
def test_ratio_with_an_unusable_side_is_nan(bad: Nll) -> None:
    good = Nll(1.0, 1)
    assert math.isnan(ratio(bad, good))
    assert math.isnan(ratio(good, bad))
