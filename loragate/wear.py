"""How worn held-out rows are: every look of a challenger at them uses up some of what they can show.

A look is one challenger judged on a set of rows. Of a hundred challengers that are all worse than allowed, each judged
with alpha = 0.05 on the same rows, five pass; so a set of rows has one alpha for all looks at it together (Bonferroni's
inequality, whatever the looks have to do with each other). Look number k gets

    alpha_k = alpha / (k (k + 1))        alpha_1 + ... + alpha_k = alpha k / (k + 1) < alpha

that is, half of alpha at first, and after each look 1 / (k + 1) of alpha is left. It falls as slowly as 1 / k^2, so
that the tenth retrain still has a hundredth of alpha, and needs no number of retrains fixed beforehand. This is the
spending half of alpha-investing (Foster and Stine 2008, J. R. Statist. Soc. B 70, 429). The earning half, where a
discovery gives alpha back, bounds the share of wrong promotions among all, not the chance of a single one, and is left
out.

A look at other rows that share some with today's counts by the share of today's rows that it saw. That is exact for the
same rows and for rows without a common one; between them it is an average over the rows.

What no counting can mend: somebody who reads the held-out answers and tunes by them learns more than pass or fail
(Dwork et al. 2015, Science 349, 636; Blum and Hardt 2015, arXiv 1502.04585, answer by revealing less).

Laws: the same weights on the same rows are one look, however often they are judged, and keep their number; a look never
gets more alpha than one before it at the same rows; the alphas of all looks at a set of rows add up to less than alpha.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loragate.rows import Conversation

MOST_MARKS = 4096
"""Marks kept of a set of rows: those that are smallest. The share of larger sets that two have in common is then an
estimate with a standard error of at most 0.8 points (sampling by the smallest hashes, Broder 1997)."""
MARK_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Look:
    """A challenger's look at a set of held-out rows.

    Attributes:
        weights: Digest of the challenger's weights.
        rows: How many different rows the set has.
        marks: Marks of the rows, ascending, at most `MOST_MARKS`.
        number: Number of the look, 1 for the first; what it is worth is derived anew from all looks on record.
        alpha: What it got of the gate's alpha.
    """

    weights: str
    rows: int
    marks: tuple[str, ...]
    number: float = 1.0
    alpha: float = 0.0

    @property
    def same(self) -> tuple[str, int, tuple[str, ...]]:
        """What two looks have in common that are one."""
        return self.weights, self.rows, self.marks

    def told(self) -> Mapping[str, object]:
        """The look without its marks."""
        return {"weights": self.weights, "rows": self.rows, "number": self.number, "alpha": self.alpha}


@dataclass(frozen=True, slots=True)
class Wear:
    """What earlier looks leave of a set of rows.

    Attributes:
        number: Number of this look; not whole where earlier looks saw some of the rows only.
        looks: Earlier looks that saw any of the rows.
        since: When the first of them was; empty where there was none.
        alpha: What this look gets.
    """

    number: float
    looks: int
    since: str
    alpha: float


def mark(conversation: Conversation) -> str:
    """A row's mark: the same for texts that differ in white space or in capital letters only."""
    said = [[m.role, " ".join(m.content.split()).lower(), m.extras] for m in conversation.messages]
    return hashlib.sha256(json.dumps([said, conversation.tools]).encode()).hexdigest()[:MARK_DIGITS]


def look_at(weights: str, marks: Iterable[str]) -> Look:
    """A look of weights at rows with these marks; copies of a row are one."""
    found = sorted(set(marks))
    return Look(weights, len(found), tuple(found[:MOST_MARKS]))


def share_seen(today: Look, earlier: Look) -> float:
    """Share of today's rows that an earlier look saw, from the smallest marks of both."""
    cut = [look.marks[-1] for look in (today, earlier) if look.rows > len(look.marks)]
    mine = [found for found in today.marks if not cut or found <= min(cut)]
    return len(set(earlier.marks).intersection(mine)) / len(mine) if mine else 0.0


def spent(alpha: float, number: float) -> float:
    """What look number `number` gets of alpha."""
    return alpha / (number * (number + 1))


def wear(today: Look, earlier: Sequence[tuple[str, Look]], alpha: float) -> Wear:
    """Number today's look by the looks before it: (when, look), oldest first."""
    first: dict[tuple[str, int, tuple[str, ...]], tuple[str, Look]] = {}
    for when, look in earlier:
        if look.same == today.same:
            break
        first.setdefault(look.same, (when, look))
    shares = [(when, share_seen(today, look)) for when, look in first.values()]
    seen = [when for when, share in shares if share > 0]
    number = 1 + sum(share for _, share in shares)
    return Wear(number, len(seen), seen[0] if seen else "", spent(alpha, number))
