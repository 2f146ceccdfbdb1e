"""Two models compared on the same rows, paired by row: the ratio of their perplexities and how sure it is.

Row i has t tokens and changes by d = nats after - nats before. Rows are the clusters: tokens of one row are not
independent, rows are.

    log ratio        L = sum d / sum t               ratio = exp(L)
    residual         e = d - L t                     so that sum e = 0
    standard error   s = sqrt(n / (n - 1) sum e^2) / sum t

s is the paired, clustered standard error (Miller 2024, arXiv 2411.00640, sections 2.2 and 4.2), which for a ratio of
sums is also the textbook one (Cochran 1977, section 6.3).

The interval is a bootstrap-t (Efron and Tibshirani 1993, section 12.5): rows are drawn anew with replacement, every
draw gives its own L* and s*, and the quantiles of (L* - L) / s* take the place of the normal's. On the losses of a real
model (tests/bench/results/2026-11-25-intervals.md) percentiles, BCa, normal and Student's t are too narrow on the side
of the long tail, since 30 to 120 rows seldom hold the few long ones; the bootstrap-t is the nearest, and keeps its
promise once that side is given a smaller alpha (`CAUTION_ROWS`).

A draw needs five sums over its rows, so what is drawn is how often each row comes: whole numbers drawn as row numbers
and counted, a block of draws at a time, times the five columns. That is the multinomial bootstrap itself, at a third of
the time of Poisson counts, and memory is that of a block whatever the number of draws.

Power is how often the upper bound of a draw, with this sample's quantile, lies below a margin. Samples have a shorter
tail than what they are drawn from, so that this is too much, by 4 points at 120 rows: the margin is taken as smaller by
6 / rows (`POWER_CAUTION`). Below 100 rows no such factor is right for tails on either side and of any weight, and no
power is told.

Laws: the same request gives the same numbers; models the other way round give 1 / ratio, 1 / high and 1 / low; what
cannot be compared is said in `problem` and its numbers are NaN; one row alone bounds nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loragate.child import Report
from loragate.comparison import USUAL_POWER, CompareEach, ComparePaired, Comparison
from loragate.perplexity import Nll, ratio, total

Floats = npt.NDArray[np.float64]

BLOCK = 2**17
"""Rows drawn at a time: what is counted stays in the processor's cache."""
CAUTION_ROWS = 60
"""On the side of the rows' long tail alpha is divided by 1 + 60 / rows: few rows do not show how long that tail is. Own
measurement, see above."""
POWER_CAUTION = 6
"""Power is told for a margin that is smaller by 6 / rows, as a share. Own measurement: from 120 rows on, reported and
simulated powers of one half and more are then within 3 points with alpha 0.05 (3.1 with 0.025), for the losses of a
real model, for the same with the models the other way round, and for its residuals on other rows
(tests/engines/test_power.py); normal residuals likewise. For t-distributed ones with three degrees of freedom it is up
to 6 points too high below 400 rows, and with alpha 0.004 up to 5 too low below 200."""
LEAST_POWER_ROWS = 100
"""Rows below which power is NaN: at 60 rows the factor that is right for one of those populations is 6 points off for
another."""
ROUNDING = 8 * float(np.finfo(np.float32).eps)
"""Residuals within this share of the sums that they come from are the rounding of losses in float32: the change is then
the same everywhere. Drawn anew, a few of them would have no spread at all and tell of a change without bounds."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A log ratio, its standard error, and how draws of the rows lie about it.

    Attributes:
        off: L* - L of every draw; empty where there is nothing to draw: one row, or the same change everywhere.
        errors: s* of every draw.
        skew: Sum of e^3; above zero where the long tail of the rows speaks for a larger ratio.
    """

    log_ratio: float
    standard_error: float
    off: Floats
    errors: Floats
    rows: int
    skew: float

    def studentised(self) -> Floats:
        """(L* - L) / s* of every draw, ascending: infinite for a draw without spread, zero if it is not off either."""
        with np.errstate(divide="ignore", invalid="ignore"):
            studentised_D = self.off / self.errors
        studentised_D[np.isnan(studentised_D)] = 0.0
        return np.sort(studentised_D)

    def cautions(self) -> tuple[float, float]:
        """What alpha is divided by for the upper bound and for the lower one."""
        more = 1 + CAUTION_ROWS / self.rows
        return (more if self.skew > 0 else 1.0), (more if self.skew < 0 else 1.0)

    def quantiles(self, alpha: float) -> tuple[float, float]:
        """The studentised values that the upper and the lower bound rest on, as order statistics."""
        sorted_D = self.studentised()
        upper, lower = (max(1, math.floor(alpha / by * (sorted_D.size + 1))) for by in self.cautions())
        return float(sorted_D[upper - 1]), float(sorted_D[-lower])

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Bounds of the log ratio, each wrong with probability alpha."""
        if not self.off.size:
            return self.log_ratio - self.standard_error, self.log_ratio + self.standard_error
        least, most = self.quantiles(alpha)
        return self.log_ratio - self.standard_error * most, self.log_ratio - self.standard_error * least

    def p_value(self, log_limit: float) -> float:
        """Probability of a log ratio this far below the limit, were that the true one.

        It is at most alpha exactly where the upper bound is at most the limit.
        """
        if not self.off.size:
            return float(self.bounds(0)[1] > log_limit)
        reached = (self.log_ratio - log_limit) / self.standard_error
        below = int(np.searchsorted(self.studentised(), reached, side="left"))
        return min(1.0, self.cautions()[0] * (1 + below) / (self.off.size + 1))

    def power(self, margin: float, alpha: float) -> float:
        """Probability that rows like these show a true log ratio to be at most a limit that is `margin` above it.

        NaN below `LEAST_POWER_ROWS` rows.
        """
        if not self.off.size:
            return float(margin >= self.standard_error)
        told = self._told()
        return float(np.mean(self._reached(alpha) / told <= margin)) if told > 0 else math.nan

    def shown_margin(self, alpha: float, power: float = USUAL_POWER) -> float:
        """Smallest margin, as in `power`, that is shown with the power wanted; infinite where none is, NaN as there."""
        if not self.off.size:
            return self.standard_error
        return float(np.quantile(self._reached(alpha), power, method="inverted_cdf")) / self._told()

    def least_alpha(self) -> float:
        """Smallest alpha that the upper bound can have: it then rests on the draw that is furthest off."""
        return self.cautions()[0] / (self.off.size + 1) if self.off.size else 0.0

    def _told(self) -> float:
        """Share of a margin that power is told for; NaN where the rows are too few to tell it."""
        return 1 - POWER_CAUTION / self.rows if self.rows >= LEAST_POWER_ROWS else math.nan

    def _reached(self, alpha: float) -> Floats:
        """How far above the true log ratio the upper bound of every draw lies."""
        with np.errstate(invalid="ignore"):
            reached_D = self.off - self.errors * self.quantiles(alpha)[0]
        reached_D[np.isnan(reached_D)] = math.inf
        return reached_D


def compare_each(request: CompareEach, report: Report) -> tuple[Comparison, ...]:
    """Compare models on each of several sets of rows."""
    return tuple(compare(each, report) for each in request.requests)


def compare(request: ComparePaired, _: Report) -> Comparison:
    """Compare two models; what stands in the way of that is an answer, too."""
    before, after = total(request.before), total(request.after)
    problem = _problem(request.before, request.after)
    if problem:
        return _compared(request, before, after, [math.nan] * 6, problem)
    tokens_N = np.array([row.tokens for row in request.before], dtype=np.float64)
    sides = [np.array([row.nats for row in side]) for side in (request.before, request.after)]
    spread = resample(sides[0], sides[1], tokens_N, draws=request.draws, seed=request.seed)
    low, high = (_exp(bound) for bound in spread.bounds(request.alpha))
    shown = request.limit * _exp(-spread.shown_margin(request.alpha))
    p_value = spread.p_value(math.log(request.limit))
    numbers = [_exp(spread.log_ratio), low, high, spread.standard_error, p_value, shown]
    return replace(_compared(request, before, after, numbers, ""), least_alpha=spread.least_alpha())


def _compared(request: ComparePaired, before: Nll, after: Nll, numbers: Sequence[float], problem: str) -> Comparison:
    value, low, high, error, p_value, shown = numbers
    return Comparison(
        rows=len(request.before),
        before=before,
        after=after,
        ratio=value,
        low=low,
        high=high,
        standard_error=error,
        limit=request.limit,
        alpha=request.alpha,
        draws=request.draws,
        p_value=p_value,
        shown_ratio=shown,
        problem=problem,
    )


def _problem(before: Sequence[Nll], after: Sequence[Nll]) -> str:
    """Say why rows cannot be compared; empty where they can."""
    if len(before) != len(after):
        return f"{len(before):,} rows were scored before and {len(after):,} after: they are not the same rows"
    if not before:
        return "no row was scored"
    for number, (one, other) in enumerate(zip(before, after, strict=True), start=1):
        if one.tokens != other.tokens:
            return f"row {number:,} has {one.tokens:,} tokens before and {other.tokens:,} after: it is not the same row"
        if not (math.isfinite(one.nats) and math.isfinite(other.nats)):
            return f"row {number:,} has {one.nats} nats before and {other.nats} after: not both are numbers"
    if math.isnan(ratio(total(before), total(after))):
        counted = total(before).tokens
        return f"{counted:,} tokens were scored, and the perplexities are not both finite numbers above zero"
    return ""


def _exp(log: float) -> float:
    """exp, infinite where that overflows."""
    try:
        return math.exp(log)
    except OverflowError:
        return math.inf


def resample(before_N: Floats, after_N: Floats, tokens_N: Floats, *, draws: int, seed: int) -> Spread:
    """Draw rows anew and see how the log ratio varies; nats and tokens per row, in the same order."""
    change_N, tokens = after_N - before_N, math.fsum(tokens_N)
    log_ratio = math.fsum(change_N) / tokens
    rest_N = change_N - log_ratio * tokens_N
    rows, nothing = tokens_N.size, np.empty(0)
    if rows == 1:
        return Spread(log_ratio, math.inf, nothing, nothing, rows, 0.0)
    if float(np.abs(rest_N).max()) <= ROUNDING * float((np.abs(before_N) + np.abs(after_N)).max()):
        return Spread(log_ratio, 0.0, nothing, nothing, rows, 0.0)
    error = math.sqrt(rows / (rows - 1) * math.fsum(rest_N**2)) / tokens
    return Spread(log_ratio, error, *_drawn(rest_N, tokens_N, draws, seed), rows, math.fsum(rest_N**3))


def _drawn(rest_N: Floats, tokens_N: Floats, draws: int, seed: int) -> tuple[Floats, Floats]:
    """L* - L and s* of every draw.

    The sums are of the residuals e about L, not of d: L* - L = sum e / sum t, and the residuals about L* follow from
    sums of e^2, e t and t^2 without cancellation.
    """
    rows = rest_N.size
    columns_NK = np.stack([rest_N, tokens_N, rest_N**2, rest_N * tokens_N, tokens_N**2], axis=1)
    sums_DK = _drawn_sums(columns_NK, draws, np.random.default_rng(seed))
    rest_D, tokens_D, rest2_D, cross_D, tokens2_D = sums_DK.T
    off_D = rest_D / tokens_D
    squares_D = rest2_D - 2 * off_D * cross_D + off_D**2 * tokens2_D
    squares_D[squares_D <= ROUNDING * rest2_D] = 0.0
    return off_D, np.sqrt(rows / (rows - 1) * squares_D) / tokens_D


def _drawn_sums(columns_NK: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Sum columns over as many rows as there are, drawn with replacement, once for every draw."""
    rows = columns_NK.shape[0]
    size = max(1, BLOCK // rows)
    sums_DK = np.empty((draws, columns_NK.shape[1]))
    for start in range(0, draws, size):
        block = min(size, draws - start)
        picked_BN = generator.integers(0, rows, (block, rows))
        picked_BN += np.arange(block)[:, None] * rows
        counts_BN = np.bincount(picked_BN.ravel(), minlength=block * rows).reshape(block, rows)
        sums_DK[start : start + block] = counts_BN @ columns_NK
    return sums_DK
