"""How often whole numbers come: counted once, told as bars and a few exact figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often whole numbers come, as bars of equal width and a few exact figures.

    Attributes:
        start: Smallest number of the first bar.
        width: Numbers in each bar.
        counts: How many values each bar holds; there is at least one.
        total: Sum of all values.
        beyond: How many values are above the limit, 0 where there is none.
    """

    start: int
    width: int
    counts: tuple[int, ...]
    total: int
    smallest: int
    median: int
    ninetieth: int
    largest: int
    beyond: int = 0

    @property
    def values(self) -> int:
        """How many values there are."""
        return sum(self.counts)


def histogram(tally: Mapping[int, int], *, bars: int = 32, limit: int | None = None) -> Histogram | None:
    """Make a histogram of values that came so often each; None where none came."""
    ordered = sorted((value, count) for value, count in tally.items() if count)
    if not ordered:
        return None
    smallest, largest = ordered[0][0], ordered[-1][0]
    width = max(1, -(-(largest - smallest + 1) // bars))
    counts = [0] * ((largest - smallest) // width + 1)
    for value, count in ordered:
        counts[(value - smallest) // width] += count
    return Histogram(
        start=smallest,
        width=width,
        counts=tuple(counts),
        total=sum(value * count for value, count in ordered),
        smallest=smallest,
        median=_quantile(ordered, 0.5),
        ninetieth=_quantile(ordered, 0.9),
        largest=largest,
        beyond=sum(count for value, count in ordered if limit is not None and value > limit),
    )


def _quantile(ordered: Sequence[tuple[int, int]], share: float) -> int:
    """The smallest value that at least a share of all values do not exceed."""
    wanted = share * sum(count for _, count in ordered)
    reached = 0
    for value, count in ordered:
        reached += count
        if reached >= wanted:
            return value
    return ordered[-1][0]
