"""Power as it is told, against how often a margin is shown, by simulation on the losses of a real model.

Three populations are made of `rows.json`: its own losses, the same with the models the other way round (the long tail
on the other side), and its residuals given to other rows (a tail that has nothing to do with the length).
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from loragate.engines.paired import LEAST_POWER_ROWS, Floats, Spread, resample

ROWS = json.loads((Path(__file__).parent / "rows.json").read_text(encoding="utf-8"))
BEFORE, AFTER, TOKENS = (np.array(ROWS[name], dtype=np.float64) for name in ("before", "after", "tokens"))
CHANGE = AFTER - BEFORE
DRAWS = 1000
WANTED = (0.5, 0.65, 0.8, 0.9, 0.95)


def elsewhere() -> Floats:
    """Changes whose residuals per token stand at other rows."""
    rest = CHANGE / TOKENS - CHANGE.sum() / TOKENS.sum()
    return np.random.default_rng(5).permutation(rest) * TOKENS


FAMILIES = {"as they are": CHANGE, "the other way round": -CHANGE, "at other rows": elsewhere()}


def spreads(change: Floats, size: int, samples: int) -> list[Spread]:
    generator = np.random.default_rng([7, size])
    picked = generator.integers(0, TOKENS.size, (samples, size))
    return [
        resample(BEFORE[rows], BEFORE[rows] + change[rows], TOKENS[rows], draws=DRAWS, seed=number)
        for number, rows in enumerate(picked)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "samples"), [(120, 4000), (400, 2000), (1000, 2000)])
def test_power_told_is_within_three_points_of_how_often_a_margin_is_shown(family: str, size: int, samples: int) -> None:
    change = FAMILIES[family]
    true, found = change.sum() / TOKENS.sum(), spreads(change, size, samples)
    tops = np.array([spread.bounds(0.05)[1] for spread in found]) - true
    for wanted in WANTED:
        margin = float(np.quantile(tops, wanted))  # so that it is shown by as many samples
        told = np.mean([spread.power(margin, 0.05) for spread in found[:1500]])
        assert abs(told - wanted) <= 0.03


@pytest.mark.parametrize("size", [30, 60, LEAST_POWER_ROWS - 1])
def test_no_power_is_told_of_rows_too_few_to_tell_it(size: int) -> None:
    (spread,) = spreads(CHANGE, size, 1)
    assert math.isnan(spread.power(0.5, 0.05))
    assert math.isnan(spread.shown_margin(0.05))


def test_more_rows_tell_a_smaller_margin() -> None:
    margins = [np.median([s.shown_margin(0.05) for s in spreads(CHANGE, size, 100)]) for size in (120, 400, 1000)]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] > 0
