"""The gate algebra: a truth table of rules and intervals, Holm by hand, and the laws."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.algebra import Claim, Estimate, Outcome, Rule, decide, finding, holm

NAN, INF = math.nan, math.inf
LOWER = {"limit": 10.0}
HIGHER = {"limit": 10.0, "direction": "higher"}
NOT_WORSE = {"kind": "non-inferiority", "margin": 1.0}
ALIKE = {"limit": 10.0, "kind": "equivalence", "margin": 1.0}


def rule(**keys: Any) -> Rule:
    return Rule(**{"metric": "nats", "limit": 10.0} | keys)


def estimate(low: float, high: float, **keys: Any) -> Estimate:
    middle = (low + high) / 2 if math.isfinite(low + high) else 10.0
    return Estimate(**{"value": middle, "low": low, "high": high, "alpha": 0.05, "p_value": 0.001} | keys)


def judged(claim: Claim) -> Outcome:
    (outcome,) = decide([claim])
    return outcome


@pytest.mark.parametrize(
    ("keys", "low", "high", "outcome"),
    [
        (LOWER, 8.0, 9.9, "pass"),
        (LOWER, 8.0, 10.0, "inconclusive"),
        (LOWER, 9.0, 11.0, "inconclusive"),
        (LOWER, 10.0, 12.0, "fail"),
        (HIGHER, 10.1, 12.0, "pass"),
        (HIGHER, 10.0, 12.0, "inconclusive"),
        (HIGHER, 8.0, 10.0, "fail"),
        (LOWER | NOT_WORSE, 10.5, 11.0, "pass"),
        (LOWER | NOT_WORSE, 10.5, 11.1, "inconclusive"),
        (LOWER | NOT_WORSE, 11.0, 12.0, "inconclusive"),
        (LOWER | NOT_WORSE, 11.1, 12.0, "fail"),
        (HIGHER | NOT_WORSE, 9.0, 9.5, "pass"),
        (HIGHER | NOT_WORSE, 8.9, 9.5, "inconclusive"),
        (HIGHER | NOT_WORSE, 8.0, 8.9, "fail"),
        (ALIKE, 9.0, 11.0, "pass"),
        (ALIKE, 8.9, 10.5, "inconclusive"),
        (ALIKE, 9.5, 11.1, "inconclusive"),
        (ALIKE, 7.0, 8.9, "fail"),
        (ALIKE, 11.1, 12.0, "fail"),
        (ALIKE, 8.0, 12.0, "inconclusive"),
    ],
)
def test_rule_passes_inside_fails_outside_and_is_inconclusive_across(
    keys: dict[str, Any], low: float, high: float, outcome: str
) -> None:
    assert judged(Claim(rule(**keys), estimate(low, high))) == outcome


@pytest.mark.parametrize("keys", [LOWER, HIGHER, LOWER | NOT_WORSE, HIGHER | NOT_WORSE, ALIKE])
@pytest.mark.parametrize(
    "changes",
    [
        {"value": NAN},
        {"value": INF},
        {"value": -INF},
        {"low": NAN},
        {"high": NAN},
        {"low": NAN, "value": NAN, "high": NAN},
        {"p_value": NAN},
        {"p_value": -0.1},
        {"value": 99.0},
        {"alpha": 0.0},
        {"alpha": NAN},
        {"alpha": 0.06},
    ],
)
def test_evidence_that_says_nothing_is_an_error(keys: dict[str, Any], changes: dict[str, Any]) -> None:
    found = replace(estimate(9.95, 10.05), **changes)
    assert judged(Claim(rule(**keys), found)) == "error"


@pytest.mark.parametrize("limit", [NAN, INF, -INF])
def test_limit_that_is_no_number_is_an_error(limit: float) -> None:
    assert judged(Claim(rule(limit=limit), estimate(8.0, 9.0))) == "error"


@pytest.mark.parametrize("keys", [LOWER, HIGHER, LOWER | NOT_WORSE, HIGHER | NOT_WORSE, ALIKE])
@pytest.mark.parametrize(("low", "high"), [(-INF, INF), (-INF, 10.0), (10.0, INF)])
def test_interval_without_an_end_never_passes(keys: dict[str, Any], low: float, high: float) -> None:
    assert judged(Claim(rule(**keys), estimate(low, high))) in {"inconclusive", "fail"}


@pytest.mark.parametrize(("power", "outcome"), [(0.8, "pass"), (0.79, "inconclusive"), (NAN, "inconclusive")])
def test_rule_with_a_least_power_passes_nothing_below_it(power: float, outcome: str) -> None:
    assert judged(Claim(rule(min_power=0.8), estimate(8.0, 9.0, power=power))) == outcome
    assert judged(Claim(rule(min_power=0.8), estimate(11.0, 12.0, power=power))) == "fail"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 0.6}, "alpha is 0.6"),
        ({"alpha": NAN}, "alpha is nan"),
        ({"margin": 0.1}, "a margin of 0.1 does not go with superiority"),
        ({"margin": -0.1, "kind": "equivalence"}, "a margin of -0.1"),
    ],
)
def test_what_is_no_rule_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rule(**keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (LOWER, "less than 10 required"),
        (HIGHER | {"comparator": "champion"}, "more than 10 x champion required"),
        (LOWER | NOT_WORSE | {"comparator": "baseline"}, "at most 11 x baseline allowed"),
        (HIGHER | NOT_WORSE, "at least 9 required"),
        (ALIKE, "between 9 and 11 allowed"),
    ],
)
def test_rule_says_what_it_asks(keys: dict[str, Any], said: str) -> None:
    assert rule(**keys).asks == said


# By hand: sorted p-values times m, m - 1, ...; then none smaller than the one before it.
@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ((), ()),
        ((0.03,), (0.03,)),
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        ((0.01, 0.02, 0.022, 0.09, 0.08), (0.05, 0.08, 0.08, 0.16, 0.16)),
        ((0.5, 0.6), (1.0, 1.0)),
        ((0.02, 0.02), (0.04, 0.04)),
        ((0.01, NAN), (0.02, 1.0)),
    ],
)
def test_holm_is_what_a_hand_computes(p_values: tuple[float, ...], adjusted: tuple[float, ...]) -> None:
    assert holm(p_values) == pytest.approx(adjusted, rel=1e-12)


def test_rules_of_one_release_share_their_alpha() -> None:
    claims = [Claim(rule(metric=str(p)), estimate(8.0, 9.0, p_value=p)) for p in (0.01, 0.04, 0.03, 0.005)]
    assert decide(claims) == ("pass", "inconclusive", "inconclusive", "pass")
    assert [judged(claim) for claim in claims] == ["pass"] * 4


def test_rule_that_cannot_be_judged_makes_the_others_no_easier() -> None:
    good, broken = estimate(8.0, 9.0, p_value=0.03), estimate(8.0, 9.0, p_value=NAN)
    assert decide([Claim(rule(), good), Claim(rule(), broken)]) == ("inconclusive", "error")


def test_nothing_to_judge_decides_nothing() -> None:
    assert decide([]) == ()


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)
estimates = st.builds(Estimate, numbers, numbers, numbers, st.floats(0.001, 0.5), st.floats(0, 1), numbers)
rules = st.sampled_from([rule(**keys) for keys in (LOWER, HIGHER, LOWER | NOT_WORSE, HIGHER | NOT_WORSE, ALIKE)])
claims = st.builds(Claim, rules, estimates)


@given(st.lists(claims, max_size=5))
def test_what_passes_with_others_passes_alone_and_is_finite(several: list[Claim]) -> None:
    for claim, outcome in zip(several, decide(several), strict=True):
        if outcome == "pass":
            found = claim.estimate
            assert judged(claim) == "pass"
            assert all(map(math.isfinite, (found.value, found.low, found.high, found.p_value)))
            assert found.p_value <= claim.rule.alpha


@given(estimates, st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_more_confidence_asked_for_lets_nothing_more_pass(found: Estimate, one: float, other: float) -> None:
    strict, lenient = (judged(Claim(rule(alpha=alpha), found)) for alpha in sorted((one, other)))
    assert strict != "pass" or lenient == "pass"


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_lies_between_a_p_value_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, more in zip(p_values, adjusted, strict=True):
        assert raw <= more <= min(1.0, len(p_values) * raw + 1e-12)
    ranked = [adjusted[number] for number in sorted(range(len(p_values)), key=p_values.__getitem__)]
    assert ranked == sorted(ranked)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("pass", "pass"), ("fail", "fail"), ("inconclusive", "inconclusive"), ("error", "error")],
)
def test_outcome_becomes_a_finding_with_its_interval(outcome: Outcome, status: str) -> None:
    found = finding(Claim(rule(), estimate(8.0, 9.0)), outcome, "said")
    assert (found.status, found.rule, found.detail) == (status, "nats", "said")
    assert (found.low, found.value, found.high, found.limit) == (8.0, 8.5, 9.0, 10.0)


def staged(stage: int, p_value: float = 0.001, high: float = 9.0) -> Claim:
    return Claim(rule(stage=stage), estimate(8.0, high, p_value=p_value))


@pytest.mark.parametrize(
    ("claims", "outcomes"),
    [
        ([staged(1), staged(2)], ("pass", "pass")),
        ([staged(2), staged(1)], ("pass", "pass")),
        ([staged(1, high=11.0), staged(2)], ("inconclusive", "inconclusive")),
        ([staged(1), staged(2, high=11.0), staged(3)], ("pass", "inconclusive", "inconclusive")),
        ([staged(1, p_value=0.04), staged(2, p_value=0.04)], ("pass", "pass")),
        ([staged(1, p_value=0.04), staged(1, p_value=0.04), staged(2)], ("inconclusive",) * 3),
        ([staged(1), staged(2, p_value=0.04), staged(2, p_value=0.04)], ("pass", "inconclusive", "inconclusive")),
    ],
)
def test_a_stage_has_its_whole_alpha_and_passes_only_after_the_one_before(
    claims: list[Claim], outcomes: tuple[Outcome, ...]
) -> None:
    assert decide(claims) == outcomes


@given(st.lists(claims, min_size=1, max_size=5), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_a_later_stage_passes_nothing_that_it_would_not_pass_alone(
    given_claims: list[Claim], stages: list[int]
) -> None:
    put = [replace(c, rule=replace(c.rule, stage=stage)) for c, stage in zip(given_claims, stages, strict=False)]
    for outcome, claim in zip(decide(put), put, strict=True):
        assert outcome == judged(claim) or (outcome, judged(claim)) == ("inconclusive", "pass")
