"""Many retrains against one champion on one set of held-out rows, by simulation on the residuals of a real model.

Every challenger is worse than allowed in truth, by nothing more than noise: the residuals per token of `rows.json`,
given to other rows at random, so that they are as heavy-tailed as those of a real model, and a shift that puts the true
ratio, over all 800 rows, where it is wanted. Held-out rows are drawn from the 800 once for a sequence of challengers.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from checks.algebra import Claim, Estimate, Rule, decide
from loragate.engines.paired import Floats, resample
from loragate.wear import spent

ROWS = json.loads((Path(__file__).parent / "rows.json").read_text(encoding="utf-8"))
BEFORE, AFTER, TOKENS = (np.array(ROWS[name], dtype=np.float64) for name in ("before", "after", "tokens"))
RESIDUAL = (AFTER - BEFORE) / TOKENS - (AFTER - BEFORE).sum() / TOKENS.sum()
ALPHA, DRAWS, LIMIT = 0.05, 2000, 1.02
CHALLENGERS = 200


@dataclass(frozen=True, slots=True)
class Sequence:
    """Challengers in a row on one set of held-out rows.

    Attributes:
        held: Numbers of the rows.
        changes: Nats that each challenger adds to the champion's, by row.
    """

    held: Floats
    changes: Floats

    @property
    def ratios(self) -> Floats:
        """What a look at the point estimate sees of each challenger."""
        return np.asarray(np.exp(self.changes[:, self.held].sum(axis=1) / TOKENS[self.held].sum()))


def sequences(number: int, size: int, true_ratio: float, challengers: int = CHALLENGERS) -> Iterator[Sequence]:
    generator = np.random.default_rng([11, size])
    for _ in range(number):
        held = generator.integers(0, TOKENS.size, size)
        order = generator.permuted(np.tile(np.arange(TOKENS.size), (challengers, 1)), axis=1)
        noise = 0.2 * RESIDUAL[order] * TOKENS
        shift = math.log(true_ratio) - noise.sum(axis=1, keepdims=True) / TOKENS.sum()
        yield Sequence(held, noise + shift * TOKENS)


def promoted(sequence: Sequence, *, ledger: bool) -> bool:
    """Whether the gate lets any challenger pass; one that is above the limit on the rows it sees never does."""
    for number in np.flatnonzero(sequence.ratios < LIMIT):
        alpha = spent(ALPHA, number + 1) if ledger else ALPHA
        if alpha < 1 / (DRAWS + 1):
            return False  # worn out, and so for every later look
        held = sequence.held
        after = BEFORE[held] + sequence.changes[number, held]
        spread = resample(BEFORE[held], after, TOKENS[held], draws=DRAWS, seed=0)
        low, high = (math.exp(bound) for bound in spread.bounds(alpha))
        rule = Rule("champion_ratio", LIMIT, comparator="champion", kind="non-inferiority", alpha=alpha)
        estimate = Estimate(math.exp(spread.log_ratio), low, high, alpha, spread.p_value(math.log(LIMIT)))
        if decide([Claim(rule, estimate)]) == ("pass",):
            return True
    return False


def test_choosing_by_the_point_estimate_promotes_a_worse_model_in_every_sequence() -> None:
    """The naive rule: 200 challengers of which each is in truth 2 % worse than the champion."""
    assert all((sequence.ratios < 1).any() for sequence in sequences(50, 100, LIMIT))


@pytest.mark.parametrize("size", [60, 100, 300])
def test_with_the_ledger_a_worse_model_is_promoted_in_no_more_sequences_than_alpha(size: int) -> None:
    """At the edge of what is allowed, where errors are likeliest; 20 challengers, after which the rows are worn out."""
    number = 600
    wrong = sum(promoted(sequence, ledger=True) for sequence in sequences(number, size, LIMIT, challengers=20))
    assert wrong / number <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / number)


def test_without_the_ledger_most_sequences_promote_a_worse_model() -> None:
    wrong = sum(promoted(sequence, ledger=False) for sequence in sequences(40, 100, LIMIT))
    assert wrong / 40 > 0.5
