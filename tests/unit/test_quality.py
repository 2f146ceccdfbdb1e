"""The quality gate as a truth table: which interval passes, fails or cannot tell, and what a user reads of it."""

import math
from dataclasses import replace
from typing import Any

import pytest
from test_gates import GOOD_TRAINED

from checks import quality
from loragate.answered import Answered
from loragate.comparison import Comparison
from loragate.limits import QualityLimits
from loragate.perplexity import Nll
from loragate.record import CurvePoint
from loragate.verdicts import Verdict
from loragate.work import Answer, Trained

NAN, INF = math.nan, math.inf
STOPPED, RUNNING_ON = Answer("Ann.", stopped=True), Answer("Ann. Ann. Ann.", stopped=False)
FOUR_ANSWERS = (STOPPED, STOPPED, STOPPED, RUNNING_ON)
GOOD = Comparison(
    rows=20,
    before=Nll(100 * math.log(53.6), 100),
    after=Nll(100 * math.log(19.0), 100),
    ratio=0.354,
    low=0.31,
    high=0.41,
    standard_error=0.08,
    limit=1.0,
    alpha=0.05,
    draws=10_000,
    p_value=0.0001,
    shown_ratio=0.8,
)
TRAINED = replace(
    GOOD_TRAINED,
    curve=(CurvePoint(1, 4.0, 1e-4, 1.0, heldout_loss=3.5), CurvePoint(2, 3.0, 1e-4, 1.0, heldout_loss=math.log(19.0))),
)
GENERAL = replace(GOOD, ratio=1.1, low=1.05, high=1.2, limit=QualityLimits().max_general_ratio)


def answered(answers: tuple[Answer, ...]) -> Answered:
    """Answers about which everything but their stops is fine."""
    return Answered(answers, tuple(answer.text for answer in answers), ("",) * len(answers))


def judged(
    compared: Comparison, answers: tuple[Answer, ...], limits: QualityLimits, trained: Trained = TRAINED, **general: Any
) -> Verdict:
    """The verdict where general rows, training and everything about answers but their stops are fine."""
    return quality.judge(compared, replace(GENERAL, **general), answered(answers), trained, limits)


def between(low: float, ratio: float, high: float, **more: Any) -> dict[str, Any]:
    return {"low": low, "ratio": ratio, "high": high} | more


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "pass"),
        (between(0.8, 0.9, 1.0), "pass"),
        (between(1.0, 1.0, 1.0), "pass"),
        (between(0.8, 0.9, 1.0001), "inconclusive"),
        (between(1.0, 1.1, 1.2), "inconclusive"),
        (between(1.0001, 1.1, 1.2, p_value=0.99), "fail"),
        (between(0.8, 0.9, 1.0, p_value=0.0501), "inconclusive"),
        (between(0.0, 0.4, INF), "inconclusive"),
        (between(0.0, 0.4, INF, standard_error=INF, rows=1, shown_ratio=0.0), "inconclusive"),
        (between(NAN, NAN, NAN, p_value=NAN, problem="no row was scored"), "error"),
        (between(0.3, NAN, 0.5), "error"),
        (between(0.3, INF, INF), "error"),
        (between(0.5, 0.4, 0.6), "error"),
        ({"p_value": NAN}, "error"),
        ({"p_value": 1.5}, "error"),
        ({"limit": 1.1}, "error"),
        ({"alpha": 0.1}, "error"),
        ({"alpha": 0.0}, "error"),
        ({"alpha": 0.01}, "pass"),
    ],
)
def test_quality_gate_judges_the_whole_interval(changes: dict[str, Any], status: str) -> None:
    verdict = judged(replace(GOOD, **changes), FOUR_ANSWERS, QualityLimits())
    assert verdict.status == status
    assert verdict.refuses == (status != "pass")
    assert {f.rule for f in verdict.findings if not f.passed} == (set() if status == "pass" else {"perplexity_ratio"})


@pytest.mark.parametrize(
    ("compared", "answers", "rules"),
    [
        ({"after": Nll(99 * math.log(19.0), 99)}, FOUR_ANSWERS, {"same_tokens"}),
        ({}, FOUR_ANSWERS[1:], {"stop_share"}),
        ({}, (RUNNING_ON,), {"stop_share"}),
        ({}, (), {"stop_share"}),
    ],
)
def test_quality_gate_fails(compared: dict[str, Any], answers: tuple[Answer, ...], rules: set[str]) -> None:
    verdict = judged(replace(GOOD, **compared), answers, QualityLimits())
    rules = rules if answers else rules | {"loop_share", "verbatim_share"}
    assert ({f.rule for f in verdict.findings if f.status == "fail"}, verdict.status) == (rules, "fail")


def test_a_failure_beside_too_little_evidence_is_called_a_failure() -> None:
    verdict = judged(replace(GOOD, high=1.2), (), QualityLimits())
    assert verdict.status == "fail"


@pytest.mark.parametrize(
    ("changes", "bounds", "rows"),
    [
        ({}, "0.354, with 95 % confidence at most 0.41", "20 rows"),
        (between(1.3, 1.5, 1.8, p_value=1.0), "1.5, with 95 % confidence at least 1.3", "20 rows"),
        (
            between(0.85, 0.95, 1.06),
            "0.95, with 90 % confidence between 0.85 and 1.06",
            "20 rows are too few to tell; about 379 would do if the ratio stays what it is",
        ),
        (
            between(0.0, 0.95, INF, rows=1, shown_ratio=0.0),
            "0.95, with 90 % confidence between 0 and inf",
            "1 row cannot tell, and nothing says how many would; hold more rows out",
        ),
        (between(NAN, NAN, NAN, problem="no row was scored"), "nan", "no row was scored"),
        ({"limit": 1.1}, "0.354", "20 rows; the comparison on record is not the one that this rule asks for"),
    ],
)
def test_quality_gate_says_the_bound_that_decides_the_limit_and_the_rows(
    changes: dict[str, Any], bounds: str, rows: str
) -> None:
    found = judged(replace(GOOD, **changes), FOUR_ANSWERS, QualityLimits()).findings[1]
    said = f"perplexity 53.600 -> 19.000: the ratio is {bounds}, at most 1 x baseline allowed; {rows}"
    assert found.detail == said


def test_quality_gate_puts_the_interval_beside_the_value() -> None:
    found = judged(GOOD, FOUR_ANSWERS, QualityLimits()).findings[1]
    assert (found.low, found.value, found.high, found.limit) == (0.31, 0.354, 0.41, 1.0)


def test_quality_gate_obeys_its_limits() -> None:
    lenient = QualityLimits(max_perplexity_ratio=1.5, min_stop_share=0.5, alpha=0.1)
    worse = replace(GOOD, low=1.1, ratio=1.2, high=1.3, limit=1.5, alpha=0.1, p_value=0.001)
    assert judged(worse, (STOPPED, RUNNING_ON), lenient).status == "pass"
    assert judged(replace(worse, limit=1.0, alpha=0.05), FOUR_ANSWERS, QualityLimits()).status == "fail"


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"ratio": 0.8}, 20),  # what 20 rows show with the usual power
        ({"ratio": 0.8**0.5}, 80),  # half as far from the limit
        ({"ratio": 0.8**-0.5}, 80),  # as far above it
        ({"ratio": 1.0}, None),
        ({"ratio": NAN}, None),
        ({"shown_ratio": 0.0}, None),
        ({"ratio": 0.8, "shown_ratio": NAN}, 16),  # 20 (0.08 (1.6449 + 0.8416) / ln 1.25) ^ 2 = 15.9
        ({"shown_ratio": NAN, "standard_error": INF}, None),
    ],
)
def test_rows_needed_grow_with_the_square_of_what_is_asked_of_them(changes: dict[str, Any], needed: int | None) -> None:
    found = replace(GOOD, **changes).rows_needed
    assert found == needed or (found is not None and needed is not None and abs(found - needed) <= 1)


@pytest.mark.parametrize(
    ("loss", "dtype", "passed"),
    [
        (math.log(19.0) + 0.9e-3, "float32", True),
        (math.log(19.0) - 1.1e-3, "float32", False),
        (math.log(19.0) + 1.9e-2, "bfloat16", True),
        (math.log(19.0) + 2.1e-2, "bfloat16", False),
        (NAN, "float32", False),
        (None, "float32", False),
    ],
)
def test_saved_adapter_must_score_as_training_did(loss: float | None, dtype: str, passed: bool) -> None:
    trained = replace(TRAINED, curve=(replace(TRAINED.curve[0], step=2, heldout_loss=loss),), dtype=dtype)
    found = judged(GOOD, FOUR_ANSWERS, QualityLimits(), trained).findings
    assert {finding.rule: finding.passed for finding in found}["reloaded_as_trained"] == passed


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        (between(1.0, 1.5, 2.0), "pass"),
        (between(1.0, 1.5, 2.1), "inconclusive"),
        (between(2.1, 3.0, 4.0, p_value=1.0), "fail"),
        (between(0.0, 1.5, INF, rows=1, shown_ratio=0.0), "inconclusive"),
        (between(NAN, NAN, NAN, p_value=NAN, problem="no row was scored"), "error"),
        ({"limit": 1.0}, "error"),
    ],
)
def test_forgetting_is_judged_by_its_interval(changes: dict[str, Any], status: str) -> None:
    limits = QualityLimits(max_general_ratio=2.0)
    verdict = judged(GOOD, FOUR_ANSWERS, limits, **({"limit": 2.0} | changes))
    assert verdict.status == status
    assert {f.rule for f in verdict.findings if not f.passed} == (set() if status == "pass" else {"general_ratio"})


def test_too_few_general_rows_are_told_apart_from_too_few_held_out() -> None:
    few = between(0.0, 1.5, INF, rows=1, shown_ratio=0.0)
    verdict = judged(GOOD, FOUR_ANSWERS, QualityLimits(), **few)
    (said,) = (f.detail for f in verdict.findings if not f.passed)
    assert said.endswith("1 row cannot tell, and nothing says how many would; name more in data.general")
