"""Held-out rows that fared worst in training: where to look first when the quality gate refuses.

A row's share in the ratio of perplexities is its change in nats, so rows are ordered by that and not by nats per token;
where every row became better, those that gained least stand first.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from loragate.perplexity import Nll

MOST = 5
"""Rows that are kept (own choice: what a reader looks at)."""
BEGINNING = 90
"""Characters of a question that tell it from others (own choice: a line)."""


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A held-out row that fared worse than others.

    Attributes:
        place: Where it stands, as file:row.
        question: How its question begins.
        before, after: Its sums with the base and with the tuned model.
    """

    place: str
    question: str
    before: Nll
    after: Nll


def worst(before: Sequence[Nll], after: Sequence[Nll], most: int = MOST) -> tuple[int, ...]:
    """Numbers of the rows by their change for the worse, the largest first, equal ones in order; NaN is the largest."""
    changes = [late.nats - early.nats for early, late in zip(before, after, strict=True)]
    changes = [math.inf if math.isnan(change) else change for change in changes]
    return tuple(sorted(range(len(changes)), key=lambda number: (-changes[number], number))[:most])


def beginning(text: str) -> str:
    """How a text begins, in one line."""
    return textwrap.shorten(text[: 4 * BEGINNING], BEGINNING, placeholder=" …") if text.split() else ""
