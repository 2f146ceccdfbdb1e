"""Rules about tasks as a truth table: which drop passes, fails or cannot be told, and what is never a pass."""

import math
from dataclasses import replace
from statistics import NormalDist, stdev

import pytest

from checks import benchmarks
from loragate.benchmark import Benchmarked, Score, compared, metrics_of
from loragate.limits import QualityLimits, TaskLimits
from loragate.verdicts import Finding

NAN = math.nan


def score(right: int, documents: int, *, start: int = 0, **changed: object) -> Score:
    """A model that is right about `right` documents in a row, from number `start` on."""
    scores = tuple(float(start <= n < start + right) for n in range(documents))
    mean = right / documents
    error = stdev(scores) / math.sqrt(documents) if documents > 1 else NAN
    return replace(Score("acc,none", mean, error, documents, True, "d" * 64, scores), **changed)


def unpaired(value: float, error: float, *, better: bool = True) -> Score:
    """A model's score on a metric that is no mean over documents."""
    return Score("perplexity,none" if not better else "f1,none", value, error, 400, better, "d" * 64)


def judged(base: Score, tuned: Score, *, alpha: float = 0.05, **task: object) -> list[Finding]:
    limits = QualityLimits.model_validate({"alpha": alpha, "tasks": (TaskLimits(file="a.yaml", **task),)})
    return list(benchmarks.findings({"sums": compared(base, tuned)}, limits))


@pytest.mark.parametrize(
    ("base", "tuned", "status"),
    [
        (score(200, 400), score(200, 400), "pass"),
        (score(200, 400), score(260, 400), "pass"),
        (score(200, 400), score(199, 400), "pass"),
        (score(200, 400), score(190, 400), "inconclusive"),  # a drop of 0.025, allowed 0.02
        (score(200, 400), score(170, 400), "fail"),
        (score(200, 400), score(200, 400, start=100), "inconclusive"),  # as many right, but others: nothing is sure
        (score(20, 40), score(20, 40), "inconclusive"),  # 40 documents alike show a drop of at most 0.063
        (score(1, 1), score(1, 1), "error"),
        (score(200, 400, value=NAN), score(200, 400), "error"),
        (score(200, 400), score(200, 400, scores=(NAN,) * 400), "error"),
        (score(200, 400), score(200, 400, asked="e" * 64), "error"),
        (score(200, 400), score(100, 200), "error"),
        (unpaired(0.8, 0.005), unpaired(0.81, 0.005), "pass"),
        (unpaired(0.8, 0.005), unpaired(0.7, 0.005), "fail"),
        (unpaired(0.8, 0.1), unpaired(0.8, 0.1), "inconclusive"),
        (unpaired(0.8, NAN), unpaired(0.8, 0.1), "error"),
        (unpaired(0.8, 0.0), unpaired(0.8, 0.0), "error"),  # no spread at all: nothing to be sure by
        (unpaired(8.0, 0.005, better=False), unpaired(7.0, 0.005, better=False), "pass"),
        (unpaired(8.0, 0.005, better=False), unpaired(9.0, 0.005, better=False), "fail"),
    ],
)
def test_drop_is_judged_by_its_interval_in_the_direction_of_the_metric(base: Score, tuned: Score, status: str) -> None:
    (found,) = judged(base, tuned)
    assert (found.rule, found.status, found.limit) == ("task/sums", status, 0.02)


@pytest.mark.parametrize(
    ("tuned", "least", "status"),
    [
        (score(360, 400), 0.85, "pass"),
        (score(360, 400), 0.89, "inconclusive"),
        (score(360, 400), 0.95, "fail"),
        (score(20, 20), 0.85, "pass"),
        (score(20, 20), 0.9, "inconclusive"),  # all right, but twenty are few
        (unpaired(8.0, 0.1, better=False), 9.0, "pass"),
        (unpaired(8.0, 0.1, better=False), 7.0, "fail"),
        (unpaired(8.0, NAN), 7.0, "error"),
    ],
)
def test_value_that_must_be_reached_is_judged_by_the_harness_s_own_error(
    tuned: Score, least: float, status: str
) -> None:
    _, found = judged(tuned, tuned, min_value=least, max_drop=1.0)
    assert (found.rule, found.status, found.limit) == ("task/sums/value", status, least)


def test_bounds_and_p_value_are_the_normal_s_where_the_metric_is_no_mean() -> None:
    found = compared(unpaired(0.8, 0.03), unpaired(0.79, 0.04))
    assert (found.drop, found.drop_error, found.paired) == (pytest.approx(0.01), pytest.approx(0.05), False)
    (finding,) = judged(unpaired(0.8, 0.03), unpaired(0.79, 0.04), alpha=0.05)
    reach = NormalDist().inv_cdf(0.95) * 0.05
    assert (finding.low, finding.high) == (pytest.approx(0.01 - reach), pytest.approx(0.01 + reach))


def test_paired_error_is_that_of_the_documents_differences() -> None:
    found = compared(score(200, 400), score(190, 400))
    differences = [1.0] * 10 + [0.0] * 390
    assert found.paired
    assert found.drop_error == pytest.approx(stdev(differences) / 20)
    assert found.drop_error < math.hypot(found.base_error, found.tuned_error) / 4


@pytest.mark.parametrize("documents", [2, 10, 100, 1000])
def test_documents_all_alike_show_wilson_s_bound_and_no_more(documents: int) -> None:
    z2 = NormalDist().inv_cdf(0.95) ** 2
    (found,) = judged(score(documents, documents), score(documents, documents))
    assert found.value == 0
    assert found.high == pytest.approx(z2 / (documents + z2))


@pytest.mark.parametrize("documents", [30, 100, 133, 150, 200, 300, 500])
def test_a_model_worse_by_more_than_allowed_seldom_passes_however_few_documents_differ(documents: int) -> None:
    """Exact: of models that lose every document with probability 0.02 and win none, how many pass with 0.05."""
    lost = 0.02
    passes = 0.0
    for count in range(documents):
        (found,) = judged(score(documents, documents), score(documents - count, documents), max_drop=lost)
        if not found.passed:
            break
        passes += math.comb(documents, count) * lost**count * (1 - lost) ** (documents - count)
    assert passes < 0.075  # without the documents that are added: 0.54 of 30, 0.20 of 150


@pytest.mark.parametrize(("tuned", "strict", "loose"), [(199, "inconclusive", "pass"), (187, "inconclusive", "fail")])
def test_more_confidence_asked_for_never_passes_or_fails_more(tuned: int, strict: str, loose: str) -> None:
    statuses = [judged(score(200, 400), score(tuned, 400), alpha=alpha)[0].status for alpha in (0.001, 0.2)]
    assert statuses == [strict, loose]


def test_rules_of_all_tasks_are_judged_together() -> None:
    limits = QualityLimits(tasks=tuple(TaskLimits(file=f"{n}.yaml", max_drop=0.015) for n in range(3)))
    one = compared(score(200, 400), score(200, 400))
    alone = list(benchmarks.findings({"a": one}, limits.model_copy(update={"tasks": limits.tasks[:1]})))
    assert [found.status for found in alone] == ["pass"]
    worse = compared(score(200, 400), score(198, 400))
    found = list(benchmarks.findings({"a": one, "b": worse, "c": worse}, limits))
    assert [each.status for each in found] == ["pass", "inconclusive", "inconclusive"]


def test_a_task_without_a_score_is_an_error_and_no_tasks_are_no_findings() -> None:
    limits = QualityLimits(tasks=(TaskLimits(file="a.yaml"),))
    assert [found.status for found in benchmarks.findings({}, limits)] == ["error"]
    assert list(benchmarks.findings({}, QualityLimits())) == []


@pytest.mark.parametrize(
    ("base", "tuned", "words"),
    [
        (
            score(200, 400),
            score(199, 400),
            "acc 0.5 -> 0.4975 over 400 documents, paired by document: worse by 0.0025,",
        ),
        (score(200, 400), score(199, 400), "at most 0.02 allowed"),
        (score(200, 400), score(195, 400), "too few documents to tell, about"),
        (score(200, 400), score(170, 400), "with 95 % confidence at least"),
        (score(1, 1), score(1, 1), "1 document and this metric have no standard error to judge by"),
        (score(200, 400), score(200, 400, asked="e" * 64), "were not asked the same documents"),
    ],
)
def test_sentence_has_values_documents_bound_and_advice(base: Score, tuned: Score, words: str) -> None:
    (found,) = judged(base, tuned)
    assert words in found.detail


def test_numbers_that_are_not_finite_are_no_metrics() -> None:
    found: dict[str, Benchmarked] = {"sums": compared(unpaired(0.8, NAN), unpaired(0.7, 0.1))}
    assert metrics_of(found) == {
        "task/sums/base": 0.8,
        "task/sums/tuned": 0.7,
        "task/sums/tuned_stderr": 0.1,
        "task/sums/drop": pytest.approx(0.1),
    }
