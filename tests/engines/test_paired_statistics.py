"""What an interval promises, by simulation on the losses of a real model: how often it is wrong.

Samples are drawn from `rows.json` (how that was made: tests/bench/intervals.py, which also compares other intervals).
The true ratio of what a sample is drawn from is known: it is that of all rows. Monte-Carlo errors are those of shares.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from checks.algebra import Claim, Estimate, Rule, decide
from loragate.engines.paired import Floats, Spread, resample

SAMPLES, DRAWS, ALPHA = 2000, 1000, 0.05
ROWS = json.loads((Path(__file__).parent / "rows.json").read_text(encoding="utf-8"))
BEFORE, AFTER, TOKENS = (np.array(ROWS[name], dtype=np.float64) for name in ("before", "after", "tokens"))
TRUE = float((AFTER - BEFORE).sum() / TOKENS.sum())


def spreads(size: int, after: Floats, *, seed: int, samples: int = SAMPLES) -> Iterator[Spread]:
    """Comparisons of samples of so many rows."""
    generator = np.random.default_rng([seed, size])
    for number, picked in enumerate(generator.integers(0, TOKENS.size, (samples, size))):
        yield resample(BEFORE[picked], after[picked], TOKENS[picked], draws=DRAWS, seed=number)


def error_of(share: float, samples: int = SAMPLES) -> float:
    """Standard error of a share in so many samples."""
    return math.sqrt(share * (1 - share) / samples)


def moved(log_ratio: float) -> Floats:
    """A model whose true log ratio to the one before is this, and whose rows differ as those of the tuned one do."""
    return AFTER + (log_ratio - TRUE) * TOKENS


@pytest.mark.parametrize("size", [30, 60, 200])
def test_intervals_hold_the_true_ratio_within_two_points_of_what_they_promise(size: int) -> None:
    found = list(spreads(size, AFTER, seed=1, samples=4000))
    for alpha in (0.05, 0.025):
        bounds = [spread.bounds(alpha) for spread in found]
        held = np.mean([low <= TRUE <= high for low, high in bounds])
        assert abs(held - (1 - 2 * alpha)) <= 0.02


@pytest.mark.parametrize("limit", [1.0, 1.05])
@pytest.mark.parametrize("size", [30, 100])
def test_a_model_exactly_at_the_limit_is_promoted_no_more_often_than_alpha(size: int, limit: float) -> None:
    """Limit 1: no difference in truth; limit 1.05: a regression at the margin."""
    rule = Rule("ratio", limit, comparator="baseline", kind="non-inferiority", alpha=ALPHA)
    outcomes = [
        decide([Claim(rule, estimate(spread, limit))])[0] for spread in spreads(size, moved(math.log(limit)), seed=2)
    ]
    assert "error" not in outcomes
    assert outcomes.count("pass") / SAMPLES <= ALPHA + 2 * error_of(ALPHA)
    assert outcomes.count("fail") / SAMPLES <= ALPHA + 2 * error_of(ALPHA)


def test_a_rule_on_the_ratio_alone_promotes_every_second_model_at_the_limit() -> None:
    naive = [spread.log_ratio <= 0 for spread in spreads(100, moved(0.0), seed=2)]
    assert np.mean(naive) == pytest.approx(0.5, abs=0.05)


def estimate(spread: Spread, limit: float) -> Estimate:
    """What the gate is given."""
    low, high = (math.exp(bound) for bound in spread.bounds(ALPHA))
    return Estimate(math.exp(spread.log_ratio), low, high, ALPHA, spread.p_value(math.log(limit)))
