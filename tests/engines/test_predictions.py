"""Predictions held against each other: a lower bound, the same from both programs, and NaN stays NaN."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.engines import predictions, scoring
from loragate.engines.predictions import Gathered, Predictions, diverge, likeliest, load, parts
from loragate.ladder import NOT_COMPARED, compared_rows
from loragate.rendering import Example

VOCABULARY = 3000


def log_p(seed: int, positions: int = 5, vocabulary: int = VOCABULARY, sharpness: float = 3.0) -> np.ndarray:
    logits_NV = sharpness * np.random.default_rng(seed).standard_normal((positions, vocabulary))
    return logits_NV - np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))


def exact(p_NV: np.ndarray, q_NV: np.ndarray) -> float:
    return float((np.exp(p_NV) * (p_NV - q_NV)).sum(axis=1).mean())


def held(p_NV: np.ndarray, q_NV: np.ndarray) -> predictions.Divergence:
    above = likeliest(p_NV)
    return diverge(above, parts(q_NV, above.ids_NK), q_NV.argmax(axis=1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.5, 6))
def test_divergence_is_at_most_the_exact_one_and_near_it_where_predictions_are_sharp(
    seed: int, share: float, sharpness: float
) -> None:
    p_NV, other_NV = log_p(seed, sharpness=sharpness), log_p(seed + 1, sharpness=sharpness)
    mixed_NV = np.log((1 - share) * np.exp(p_NV) + share * np.exp(other_NV))
    found, whole = held(p_NV, mixed_NV).kl, exact(p_NV, mixed_NV)
    assert -1e-6 <= found <= whole * (1 + 1e-5) + 1e-6
    if sharpness > 3:
        assert found >= 0.9 * whole - 1e-6


def test_a_model_does_not_diverge_from_itself() -> None:
    found = held(log_p(0), log_p(0))
    assert (found.kl, found.top1_agreement, found.positions) == (pytest.approx(0, abs=1e-6), 1.0, 5)


def test_what_moves_in_the_tail_is_seen() -> None:
    p_NV = log_p(0)
    q_NV = p_NV.copy()
    q_NV[:, np.argsort(p_NV[0])[1500]] += 12  # no likely token of the first position; it takes from all others
    q_NV -= np.log(np.exp(q_NV).sum(axis=1, keepdims=True))
    assert held(p_NV, q_NV).kl > 0.1


@pytest.mark.parametrize("vocabulary", [40, 512, VOCABULARY])
def test_both_programs_make_the_same_parts(vocabulary: int) -> None:
    p_NV = log_p(0, vocabulary=vocabulary)
    above = likeliest(log_p(1, vocabulary=vocabulary))
    ours_NP = parts(p_NV, above.ids_NK.astype(np.int64))
    theirs_NP = scoring.parts(torch.from_numpy(p_NV), torch.from_numpy(above.ids_NK).long())
    assert ours_NP == pytest.approx(theirs_NP, abs=1e-9)
    whole_N = np.exp(ours_NP).sum(axis=1)
    assert whole_N == pytest.approx(np.ones(5), abs=1e-9)


@pytest.mark.parametrize("make", ["numpy", "torch"])
def test_a_token_that_the_model_below_lacks_is_not_a_number(make: str) -> None:
    above, small_NV = likeliest(log_p(0)), log_p(1, vocabulary=600)
    ids_NK = above.ids_NK.astype(np.int64)
    below = (
        scoring.parts(torch.from_numpy(small_NV), torch.from_numpy(ids_NK))
        if make == "torch"
        else parts(small_NV, ids_NK)
    )
    assert math.isnan(diverge(above, below, small_NV.argmax(axis=1)).kl)


def test_nan_and_missing_positions_never_look_like_a_number() -> None:
    p_NV = log_p(0)
    broken_NV = p_NV.copy()
    broken_NV[2] = np.nan
    assert math.isnan(held(p_NV, broken_NV).kl)
    above = likeliest(p_NV)
    assert diverge(above, parts(p_NV, above.ids_NK)[:4], p_NV.argmax(axis=1)[:4]) == NOT_COMPARED


def test_what_is_gathered_in_batches_is_what_comes_whole(tmp_path: Path) -> None:
    p_NV, q_NV = log_p(0, positions=7), log_p(1, positions=7)
    folders = [tmp_path / name for name in ("above", "below")]
    for folder in folders:
        folder.mkdir()
    first = Gathered(str(folders[0]), {})
    first.add(likeliest(p_NV), lambda _: pytest.fail("there is nothing above"))
    assert first.finish() == {}
    second = Gathered(str(folders[1]), {"p": str(folders[0])})
    for rows in (slice(0, 3), slice(3, 4), slice(4, 7)):
        second.add(likeliest(q_NV[rows]), lambda ids_NK, rows=rows: parts(q_NV[rows], ids_NK))
    assert second.finish()["p"].kl == pytest.approx(held(p_NV, q_NV).kl, rel=1e-6)
    kept = load(str(folders[1]))
    assert np.array_equal(kept.ids_NK, likeliest(q_NV).ids_NK)


def test_nothing_gathered_is_nothing_compared(tmp_path: Path) -> None:
    Predictions(np.empty((0, 1), np.int32), np.empty((0, 1), np.float32)).save(tmp_path)
    assert Gathered(str(tmp_path), {"above": str(tmp_path)}).finish() == {"above": NOT_COMPARED}


def row(supervised: int) -> Example:
    return Example(tuple(range(supervised + 1)), ((1, supervised + 1),), 1, 1, supervised + 1)


@pytest.mark.parametrize(("lengths", "rows"), [([], 0), ([9000], 1), ([4000, 96, 1], 2), ([1] * 50, 50)])
def test_whole_rows_are_compared_up_to_a_number_of_positions(lengths: list[int], rows: int) -> None:
    assert compared_rows([row(length) for length in lengths]) == rows
