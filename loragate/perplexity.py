"""Perplexity as sums that are divided once, at the edge.

perplexity = exp(sum of nats / sum of tokens), over the assistant's tokens and the stop token that ends them.
Sums are kept per row so that two models can be compared row by row.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nll:
    """Negative log-likelihood over counted tokens.

    Attributes:
        nats: Sum of -ln p(token) over counted tokens, in nats. Never negative.
        tokens: How many tokens were counted. May be zero.
    """

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token; NaN where no token was counted, so that no limit is met by it."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens); infinite where that overflows, NaN where no token was counted."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


def ratio(before: Nll, after: Nll) -> float:
    """Perplexity after / before; NaN where either is no finite positive number, so that no limit is met by it."""
    perplexities = (before.perplexity, after.perplexity)
    usable = all(math.isfinite(perplexity) and perplexity > 0 for perplexity in perplexities)
    return after.perplexity / before.perplexity if usable else math.nan


def total(rows: Iterable[Nll]) -> Nll:
    """Add up sums and counts; dividing comes last and once."""
    rows = tuple(rows)
    return Nll(math.fsum(row.nats for row in rows), sum(row.tokens for row in rows))
