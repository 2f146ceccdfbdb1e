"""Paired comparisons: by hand and by scipy, the same for a seed, laws of ratios, and what cannot be compared."""

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from loragate.child import ignore
from loragate.comparison import ComparePaired, Comparison
from loragate.engines.paired import BLOCK, compare, resample
from loragate.perplexity import Nll

NAN, INF = math.nan, math.inf
BEFORE = (Nll(6.0, 2), Nll(9.0, 3), Nll(16.0, 5), Nll(7.0, 4))
AFTER = (Nll(5.0, 2), Nll(8.5, 3), Nll(12.0, 5), Nll(6.5, 4))


def compared(before: Sequence[Nll], after: Sequence[Nll], **keys: Any) -> Comparison:
    request = ComparePaired(tuple(before), tuple(after), limit=1.0, alpha=0.05, draws=1000, seed=0)
    return compare(replace(request, **keys), ignore)


def many(rows: int, seed: int = 1, shift: float = -0.05) -> tuple[list[Nll], list[Nll]]:
    """Rows with heavy-tailed token counts, whose losses differ from row to row more than between the models."""
    generator = np.random.default_rng(seed)
    tokens = generator.lognormal(2.5, 0.8, rows).astype(int) + 1
    before = tokens * generator.gamma(4.0, 1.0, rows)
    after = before + tokens * (shift + 0.2 * generator.normal(size=rows))
    return (
        [Nll(float(nats), int(count)) for nats, count in zip(before, tokens, strict=True)],
        [Nll(float(nats), int(count)) for nats, count in zip(after, tokens, strict=True)],
    )


def test_ratio_and_standard_error_are_what_a_hand_computes() -> None:
    # Changes -1, -0.5, -4, -0.5 over 2, 3, 5, 4 tokens: L = -6 / 14; residuals d - L t are -1/7, 11/14, -13/7, 17/14.
    found = compared(BEFORE, AFTER)
    assert (found.rows, found.before, found.after) == (4, Nll(38.0, 14), Nll(32.0, 14))
    assert found.ratio == pytest.approx(math.exp(-6 / 14), rel=1e-14)
    squares = (2**2 + 11**2 + 26**2 + 17**2) / 14**2
    assert found.standard_error == pytest.approx(math.sqrt(4 / 3 * squares) / 14, rel=1e-13)
    assert found.low < found.ratio < found.high
    assert found.problem == ""


def test_standard_error_of_rows_of_one_token_is_that_of_a_mean() -> None:
    changes = np.random.default_rng(0).normal(size=50)
    found = resample(np.zeros(50), changes, np.ones(50), draws=10, seed=0)
    assert found.log_ratio == pytest.approx(changes.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(changes), rel=1e-12)


def test_draws_are_those_of_scipy_s_bootstrap() -> None:
    before, after = many(200)
    change = np.array([b.nats - a.nats for a, b in zip(before, after, strict=True)])
    tokens = np.array([float(row.tokens) for row in before])

    def log_ratio(change: Any, tokens: Any, axis: int = -1) -> Any:
        return change.sum(axis=axis) / tokens.sum(axis=axis)

    theirs = stats.bootstrap(
        (change, tokens), log_ratio, paired=True, vectorized=True, n_resamples=20_000, rng=np.random.default_rng(0)
    )
    ours = resample(np.zeros(200), change, tokens, draws=20_000, seed=0)
    assert ours.off.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.02)
    for share in (0.05, 0.5, 0.95):
        quantile = np.quantile(theirs.bootstrap_distribution, share) - ours.log_ratio
        assert np.quantile(ours.off, share) == pytest.approx(quantile, abs=0.05 * ours.standard_error)


def test_standard_error_of_every_draw_is_that_of_its_rows() -> None:
    before, after = many(12)
    change = np.array([b.nats - a.nats for a, b in zip(before, after, strict=True)])
    tokens = np.array([float(row.tokens) for row in before])
    ours = resample(np.zeros(12), change, tokens, draws=50, seed=3)
    picked = np.random.default_rng(3).integers(0, 12, (50, 12))
    for number, rows in enumerate(picked):
        one = resample(np.zeros(12), change[rows], tokens[rows], draws=1, seed=0)
        assert ours.off[number] == pytest.approx(one.log_ratio - ours.log_ratio, abs=1e-12)
        assert ours.errors[number] == pytest.approx(one.standard_error, rel=1e-9)


def test_same_seed_gives_the_same_numbers_and_another_others() -> None:
    rows = many(120)
    assert compared(*rows) == compared(*rows)
    assert compared(*rows).high != compared(*rows, seed=1).high
    assert compared(*rows, seed=1).ratio == compared(*rows).ratio


def test_numbers_do_not_depend_on_how_draws_fall_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many(40)
    whole = compared(*rows)
    monkeypatch.setattr("loragate.engines.paired.BLOCK", 100)
    blocks = compared(*rows)
    assert (blocks.low, blocks.high, blocks.p_value) == pytest.approx((whole.low, whole.high, whole.p_value), rel=1e-12)


def test_ten_thousand_draws_of_ten_thousand_rows_need_the_memory_of_a_block() -> None:
    before, after = many(10_000)
    tracemalloc.start()
    try:
        found = compared(before, after, draws=10_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.low < found.ratio < found.high < 1
    assert peak < 8 * 8 * BLOCK + 20 * 8 * 10_000  # a few arrays of a block, and of rows and draws


def test_p_value_is_at_most_alpha_exactly_where_the_bound_is_at_most_the_limit() -> None:
    rows = many(30, shift=-0.05)
    spread = resample(*(np.array(side) for side in _columns(*rows)), draws=999, seed=0)
    for alpha in (0.01, 0.05, 0.1, 0.2):
        high = spread.bounds(alpha)[1]
        assert spread.p_value(high + 1e-9) <= alpha < spread.p_value(high - 1e-9)


def _columns(before: Sequence[Nll], after: Sequence[Nll]) -> tuple[list[float], list[float], list[float]]:
    return [row.nats for row in before], [row.nats for row in after], [float(row.tokens) for row in before]


def test_smallest_margin_shown_has_the_power_that_was_asked_for() -> None:
    spread = resample(*(np.array(side) for side in _columns(*many(120))), draws=1000, seed=0)
    for wanted in (0.5, 0.8, 0.9):
        margin = spread.shown_margin(0.05, wanted)
        assert spread.power(margin, 0.05) == pytest.approx(wanted, abs=0.001)
        assert spread.power(margin - 1e-9, 0.05) < wanted
    assert spread.power(0.0, 0.05) < 0.1
    found = compared(*many(120), limit=0.9)
    assert found.shown_ratio == pytest.approx(0.9 * math.exp(-spread.shown_margin(0.05)), rel=1e-12)


token_counts = st.lists(st.integers(1, 400), min_size=2, max_size=30)
losses = st.floats(0.01, 12.0)


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[Nll], list[Nll]]:
    tokens = draw(token_counts)
    sides = [[Nll(count * draw(losses), count) for count in tokens] for _ in range(2)]
    return sides[0], sides[1]


@settings(max_examples=50)
@given(scored())
def test_models_the_other_way_round_give_the_inverse(rows: tuple[list[Nll], list[Nll]]) -> None:
    one, other = compared(*rows), compared(rows[1], rows[0])
    assert other.ratio == pytest.approx(1 / one.ratio, rel=1e-9)
    assert other.low == pytest.approx(1 / one.high, rel=1e-6)
    assert one.low == pytest.approx(1 / other.high, rel=1e-6)


@settings(max_examples=50)
@given(scored(), st.sampled_from([2, 4, 8]))
def test_rows_of_more_tokens_and_nats_alike_give_the_same(rows: tuple[list[Nll], list[Nll]], times: int) -> None:
    longer = [[Nll(row.nats * times, row.tokens * times) for row in side] for side in rows]
    assert _numbers(compared(*longer)) == pytest.approx(_numbers(compared(*rows)), rel=1e-9, nan_ok=True)


def _numbers(found: Comparison) -> list[float]:
    return [found.ratio, found.low, found.high, found.standard_error, found.p_value, found.shown_ratio]


@settings(max_examples=50)
@given(token_counts, st.data(), st.floats(-2.0, 2.0))
def test_the_same_change_per_token_leaves_no_doubt(tokens: list[int], data: st.DataObject, shift: float) -> None:
    before = [Nll(count * data.draw(st.floats(3.0, 12.0)), count) for count in tokens]
    after = [Nll(row.nats + shift * row.tokens, row.tokens) for row in before]
    found = compared(before, after)
    assert [found.low, found.ratio, found.high] == pytest.approx([math.exp(shift)] * 3, rel=1e-9)
    assert found.low == found.high
    assert found.standard_error == 0


def test_a_model_held_against_itself_is_exactly_equal_and_within_a_limit_of_one() -> None:
    found = compared(BEFORE, BEFORE)
    assert (found.low, found.ratio, found.high, found.p_value, found.shown_ratio) == (1.0, 1.0, 1.0, 0.0, 1.0)
    assert compared(BEFORE, BEFORE, limit=0.99).p_value == 1.0


def test_one_row_bounds_nothing() -> None:
    found = compared(BEFORE[:1], AFTER[:1])
    assert found.ratio == pytest.approx(math.exp(-0.5))
    assert (found.low, found.high, found.standard_error, found.p_value) == (0.0, INF, INF, 1.0)
    assert (found.shown_ratio, found.rows_needed) == (0.0, None)


def test_rows_without_tokens_change_nothing_but_their_number() -> None:
    found = compared([*BEFORE, Nll(0.0, 0)], [*AFTER, Nll(0.0, 0)])
    assert (found.rows, found.ratio) == (5, compared(BEFORE, AFTER).ratio)


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ((), (), "no row was scored"),
        (BEFORE, AFTER[:3], "4 rows were scored before and 3 after: they are not the same rows"),
        (BEFORE, (), "4 rows were scored before and 0 after"),
        (BEFORE, (*AFTER[:3], Nll(6.5, 5)), "row 4 has 4 tokens before and 5 after: it is not the same row"),
        ((BEFORE[1], BEFORE[0]), AFTER[:2], "row 1 has 3 tokens before and 2 after"),
        (BEFORE, (*AFTER[:3], Nll(NAN, 4)), "row 4 has 7.0 nats before and nan after: not both are numbers"),
        (BEFORE, (*AFTER[:3], Nll(INF, 4)), "row 4 has 7.0 nats before and inf after"),
        ((Nll(-INF, 2),), (Nll(1.0, 2),), "row 1 has -inf nats before and 1.0 after"),
        ((Nll(0.0, 0),), (Nll(0.0, 0),), "0 tokens were scored"),
        ((Nll(8000.0, 10),), (Nll(7900.0, 10),), "the perplexities are not both finite numbers above zero"),
    ],
)
def test_what_cannot_be_compared_is_said_and_has_no_numbers(
    before: tuple[Nll, ...], after: tuple[Nll, ...], problem: str
) -> None:
    found = compared(before, after)
    assert problem in found.problem
    assert all(math.isnan(number) for number in _numbers(found))
    assert found.rows_needed is None
