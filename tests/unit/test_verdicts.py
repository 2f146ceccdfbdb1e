"""Verdicts: no findings, NaN and infinities never pass, and a refusal says why."""

import math

import pytest

from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, exactly, none_of

PASSED = Finding("good", True, "it holds")
WARNED = Finding("odd", False, "a little off", severity="warn")
FAILED = Finding("bad", False, "it is 3, at most 2 allowed")
UNDECIDED = Finding("open", False, "it is between 1 and 3, at most 2 allowed", evidence="little")
UNJUDGED = Finding("lost", False, "nothing was measured", evidence="none")
MILD = Finding("mild", False, "between 1 and 3, at most 2 wanted", severity="warn", evidence="little")


@pytest.mark.parametrize(
    ("findings", "status", "refuses"),
    [
        ([], "error", True),
        ([PASSED], "pass", False),
        ([PASSED, WARNED], "warn", False),
        ([PASSED, FAILED], "fail", True),
        ([WARNED, FAILED], "fail", True),
        ([PASSED, UNDECIDED], "inconclusive", True),
        ([UNDECIDED, WARNED], "inconclusive", True),
        ([UNDECIDED, UNJUDGED], "error", True),
        ([PASSED, UNJUDGED], "error", True),
        ([UNJUDGED, FAILED], "fail", True),
        ([UNDECIDED, FAILED], "fail", True),
        ([PASSED, MILD], "warn", False),
    ],
)
def test_status_is_the_worst_of_the_findings(findings: list[Finding], status: str, refuses: bool) -> None:
    verdict = conclude("quality", findings)
    assert (verdict.status, verdict.refuses) == (status, refuses)


@pytest.mark.parametrize(
    ("status", "refuses"),
    [("pass", False), ("warn", False), ("fail", True), ("inconclusive", True), ("error", True)],
)
def test_only_pass_and_warn_let_a_release_go_on(status: str, refuses: bool) -> None:
    assert Verdict("quality", status, (PASSED,)).refuses is refuses  # type: ignore[arg-type]


def test_verdict_without_findings_is_an_error_that_says_so() -> None:
    verdict = conclude("quality", [])
    assert verdict.sentence == "refused by the quality gate: evidence: the gate was given nothing to judge"


def test_verdict_keeps_every_finding_passed_or_not() -> None:
    assert conclude("quality", [PASSED, WARNED, FAILED]).findings == (PASSED, WARNED, FAILED)


def test_refusal_gives_the_reasons_that_refuse_and_no_others() -> None:
    verdict = conclude("quality", [PASSED, WARNED, FAILED])
    assert verdict.reasons == ("bad: it is 3, at most 2 allowed",)
    assert verdict.sentence == "refused by the quality gate: bad: it is 3, at most 2 allowed"
    assert conclude("quality", [PASSED, WARNED]).sentence == "quality gate: warn (2 rules)"


def test_too_little_evidence_is_a_reason_and_is_called_what_it_is() -> None:
    verdict = conclude("quality", [PASSED, UNDECIDED, MILD])
    said = "refused by the quality gate (inconclusive): open: it is between 1 and 3, at most 2 allowed"
    assert verdict.sentence == said


def test_a_rule_that_holds_passes_whatever_is_said_about_its_evidence() -> None:
    assert Finding("good", True, "it holds", evidence="none").status == "pass"


@pytest.mark.parametrize(
    ("value", "most", "least"),
    [
        (1.0, True, False),
        (2.0, True, True),
        (2.0000001, False, True),
        (math.nan, False, False),
        (math.inf, False, False),
        (-math.inf, False, False),
    ],
)
def test_limit_is_inclusive_and_needs_a_finite_value(value: float, most: bool, least: bool) -> None:
    assert at_most("rule", value, 2.0, "it").passed is most
    assert at_least("rule", value, 2.0, "it").passed is least


def test_limit_that_is_nan_is_never_met() -> None:
    assert not at_most("rule", 1.0, math.nan, "it").passed
    assert not at_least("rule", 1.0, math.nan, "it").passed


def test_finding_carries_value_limit_and_a_sentence_with_both() -> None:
    expected = Finding("rule", False, "it is 3.142, at most 2.5 allowed", value=3.14159, limit=2.5)
    assert at_most("rule", 3.14159, 2.5, "it") == expected
    assert at_least("rule", 0.5, 0.75, "it").detail == "it is 0.5, at least 0.75 required"


def test_count_must_be_exact() -> None:
    assert exactly("rule", 1000, 1000, "it").passed
    refused = exactly("rule", 999, 1000, "number of weights")
    assert not refused.passed
    assert refused.detail == "number of weights is 999, exactly 1,000 required"


def test_offenders_are_counted_and_the_first_is_named() -> None:
    assert none_of("rule", (), "tensors hold NaN") == Finding("rule", True, "0 tensors hold NaN", value=0, limit=0)
    refused = none_of("rule", ("a", "b"), "tensors hold NaN")
    assert refused == Finding("rule", False, "2 tensors hold NaN, the first is a", value=2, limit=0)
