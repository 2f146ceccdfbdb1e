"""What a task of a benchmark found about a model, and about two models on the same documents.

A metric that is a mean over documents has a score for each, so two models are compared document by document: the
standard error is that of the mean difference,

    sqrt(sum((d - mean(d))^2) / (n - 1) / n),   d = score of the base - score of the tuned model,

which is lm-evaluation-harness's own formula for a mean, applied to the differences. Models that fail at the same
documents differ in few of them, and the error is then much smaller than sqrt(se_base^2 + se_tuned^2). That, of the
harness's bootstrapped errors, is taken for metrics that are no mean (perplexity, f1): for models whose scores go
together, as a base's and its fine-tune's do, it is too large rather than too small.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_DOCUMENTS = 2
"""Documents without which nothing has a standard error."""


@dataclass(frozen=True, slots=True)
class Score:
    """One model on one task.

    Attributes:
        metric: With its filter, as the harness writes it, e.g. `acc,none`.
        standard_error: The harness's own; NaN where it has none.
        asked: Digest of what was asked, document by document.
        scores: Of each document, in order, where the metric is their mean; empty where it is something else.
    """

    metric: str
    value: float
    standard_error: float
    documents: int
    higher_is_better: bool
    asked: str
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sat:
    """What base and tuned model scored on one task, document by document."""

    base: Score
    tuned: Score


@dataclass(frozen=True, slots=True)
class Benchmarked:
    """Base and tuned model on the same documents of one task.

    Attributes:
        metric, documents: As in `Score`.
        base, tuned: Values of the metric; their standard errors are the harness's, NaN where it has none.
        drop: By how much the tuned model is worse; negative where it is better.
        drop_error: Standard error of that.
        paired: Whether it is that of the documents' differences, or made from the two models' errors.
        least, most: Ends of the range that the documents' scores and zero span; 0 to 1 where all are zero, both 0 where
            the metric is no mean.
        problem: Why nothing could be compared; empty where it could.
    """

    metric: str
    documents: int
    higher_is_better: bool
    base: float
    tuned: float
    base_error: float
    tuned_error: float
    drop: float
    drop_error: float
    paired: bool
    least: float
    most: float
    problem: str = ""

    @property
    def unit(self) -> str:
        """The metric without a filter that says nothing."""
        return self.metric.removesuffix(",none")


def compared(base: Score, tuned: Score) -> Benchmarked:
    """Hold the tuned model's score against the base's."""
    sign = 1.0 if base.higher_is_better else -1.0
    differences = [sign * (before - after) for before, after in zip(base.scores, tuned.scores, strict=False)]
    paired = len(differences) == base.documents and bool(differences)
    least, most = _range((*base.scores, *tuned.scores)) if paired else (0.0, 0.0)
    return Benchmarked(
        metric=base.metric,
        documents=base.documents,
        higher_is_better=base.higher_is_better,
        base=base.value,
        tuned=tuned.value,
        base_error=base.standard_error,
        tuned_error=tuned.standard_error,
        drop=sign * (base.value - tuned.value),
        drop_error=_mean_error(differences) if paired else math.hypot(base.standard_error, tuned.standard_error),
        paired=paired,
        least=least,
        most=most,
        problem=_problem(base, tuned),
    )


def _problem(base: Score, tuned: Score) -> str:
    if (base.metric, base.asked, base.documents) != (tuned.metric, tuned.asked, tuned.documents):
        return "base and tuned model were not asked the same documents"
    return ""


def _range(scores: tuple[float, ...]) -> tuple[float, float]:
    least, most = min(0.0, *scores), max(0.0, *scores)
    return (least, most) if most > least else (0.0, 1.0)


def _mean_error(values: list[float]) -> float:
    """The standard error of a mean; NaN where there are too few values, or one that is no number."""
    if len(values) < LEAST_DOCUMENTS or not all(map(math.isfinite, values)):
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def metrics_of(found: Mapping[str, Benchmarked]) -> dict[str, float]:
    """Values and standard errors by name, as the record, MLflow and `--json` have them."""
    numbers = {
        f"task/{name}/{which}": value
        for name, each in found.items()
        for which, value in {
            "base": each.base,
            "tuned": each.tuned,
            "base_stderr": each.base_error,
            "tuned_stderr": each.tuned_error,
            "drop": each.drop,
            "drop_stderr": each.drop_error,
        }.items()
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
