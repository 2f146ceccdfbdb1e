"""Two models compared on the same rows: what is asked and what was found; `loragate.engines.paired` makes the numbers.

Everything is about the log ratio of perplexities, whose standard error falls with the square root of the rows.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from loragate.perplexity import Nll

USUAL_POWER = 0.8
"""Power with which rows count as able to show something (Cohen 1988, section 2.4)."""


@dataclass(frozen=True, slots=True)
class ComparePaired:
    """Compare two models by their sums over the same rows, in the same order.

    Attributes:
        limit: The ratio of perplexities, after / before, that a gate allows: the p-value is about it.
        alpha: Probability with which each bound of the interval may be wrong.
        draws: How often rows are drawn anew.
        seed: Seed of the draws.
    """

    before: tuple[Nll, ...]
    after: tuple[Nll, ...]
    limit: float
    alpha: float
    draws: int
    seed: int


@dataclass(frozen=True, slots=True)
class CompareEach:
    """Compare two models on each of several sets of rows."""

    requests: tuple[ComparePaired, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a paired comparison found.

    Attributes:
        before, after: Sums over all rows.
        ratio: Perplexity after / before.
        low: The true ratio is at least this with confidence 1 - alpha; 0 where the rows give no bound.
        high: It is at most this with confidence 1 - alpha; infinite where the rows give no bound.
        standard_error: Of the log ratio; infinite for a single row.
        limit: The ratio that is allowed.
        p_value: Probability of rows that speak for "at most the limit" like these, if the true ratio were the limit.
        shown_ratio: Largest true ratio whose being at most the limit such rows show in four of five cases; NaN where
            the rows are too few to tell that.
        least_alpha: Smallest alpha that so many draws of these rows are able to show.
        problem: Why nothing could be compared; empty where it could. Numbers are NaN then.
    """

    rows: int
    before: Nll
    after: Nll
    ratio: float
    low: float
    high: float
    standard_error: float
    limit: float
    alpha: float
    draws: int
    p_value: float
    shown_ratio: float
    problem: str = ""
    least_alpha: float = 0.0

    @property
    def rows_needed(self) -> int | None:
        """Rows that tell a true ratio like this one from the limit in four of five cases; None where no number does."""
        reach = self._reach
        known = math.isfinite(self.ratio) and self.ratio > 0 and math.isfinite(reach)
        margin = abs(math.log(self.ratio / self.limit)) if known else 0.0
        return math.ceil(self.rows * (reach / margin) ** 2) if margin else None

    @property
    def _reach(self) -> float:
        """Distance in the log ratio that as many rows show with the usual power.

        Where the rows are too few to tell it is the normal's, as the number of rows that is looked for is larger.
        """
        if math.isnan(self.shown_ratio):
            normal = NormalDist()
            return self.standard_error * (normal.inv_cdf(1 - self.alpha) + normal.inv_cdf(USUAL_POWER))
        return math.log(self.limit / self.shown_ratio) if self.shown_ratio > 0 else math.inf
