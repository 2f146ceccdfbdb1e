"""Rules about tasks of a benchmark: the tuned model is shown to be worse than the base by no more than a margin.

A rule's interval is normal, from the standard error that `loragate.benchmark` keeps: of the documents' differences
where the metric is a mean over documents, else from the harness's errors of both models. The rule about the tuned
model's value alone uses the harness's own error of it.

Two models that answer each of a few documents alike would have no standard error at all, and be sure of everything. So
for means z^2 documents are added, half of them at either end of what a document can score (Agresti and Coull 1998, The
American Statistician 52, 119; for pairs, with one document an end, Bonett and Price 2012, J. Educ. Behav. Stat. 37,
479). With value v, error e and n documents, the ends a < b, their middle m and k = z^2:

    centre = (n v + k m) / (n + k)
    error  = sqrt(n (n - 1) e^2 + k (b - a)^2 / 4 + (v - m)^2 n k / (n + k)) / (n + k)

Where no document differs, the bound is Wilson's z^2 / (n + z^2): 100 documents alike show a drop of at most 0.026.

Tasks are a family of their own: Holm's correction holds all their rules together at alpha. The rules about perplexity
(held-out rows, champion, general rows) are another with the same alpha, and a release must pass both. So a model that
any one rule should have stopped is let through with probability alpha at most; that some rule of one family or the
other passes wrongly, in a gate that may yet refuse, has up to twice that. Looks at a task's documents are not counted:
whoever chooses among many trainings by a task should not have them judged by it.

Laws: no standard error, or a value that is no number, is an error; a task without a score is an error; more documents
alike never turn a pass into anything else.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from checks import algebra
from loragate.benchmark import LEAST_DOCUMENTS, Benchmarked
from loragate.comparison import USUAL_POWER
from loragate.limits import QualityLimits, TaskLimits
from loragate.verdicts import Finding

NORMAL = NormalDist()
NOWHERE = (0.0, 0.0)
"""Ends of what a document can score, where a metric is no mean of documents' scores."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A rule about one task, what is known, and the sentence's parts.

    Attributes:
        told: What was measured.
        error: Standard error of what is judged.
    """

    claim: algebra.Claim
    found: Benchmarked
    told: str
    error: float


def findings(found: Mapping[str, Benchmarked], limits: QualityLimits) -> Iterator[Finding]:
    """Yield the findings about every task, all rules judged together; none where the run file names no task."""
    if len(found) != len(limits.tasks):
        detail = f"{len(found)} of {len(limits.tasks)} tasks have a score"
        yield Finding("tasks", False, detail, evidence="none")
        return
    pairs = zip(found.items(), limits.tasks, strict=True)
    asked = [rule for (name, each), task in pairs for rule in _rules(name, each, task, limits.alpha)]
    outcomes = algebra.decide([each.claim for each in asked])
    for each, outcome in zip(asked, outcomes, strict=True):
        yield algebra.finding(each.claim, outcome, _sentence(each, outcome))


def _rules(name: str, found: Benchmarked, task: TaskLimits, alpha: float) -> Iterator[Asked]:
    """Yield what is asked of one task: how much worse it may be and, where that is said, how good it must be."""
    span = found.most - found.least
    drop = algebra.Rule(f"task/{name}", task.max_drop, kind="non-inferiority", alpha=alpha)
    ends = (-span, span)
    how = ", paired by document" if found.paired else ""
    told = f"{found.unit} {found.base:.4g} -> {found.tuned:.4g} over {_counted(found)}{how}: worse by {found.drop:.4g}"
    yield _asked(drop, found, (found.drop, found.drop_error), ends, told)
    if task.min_value is not None:
        direction: Literal["higher", "lower"] = "higher" if found.higher_is_better else "lower"
        reach = algebra.Rule(f"task/{name}/value", task.min_value, direction, kind="non-inferiority", alpha=alpha)
        told = f"{found.unit} of the tuned model over {_counted(found)} is {found.tuned:.4g}"
        yield _asked(reach, found, (found.tuned, found.tuned_error), (found.least, found.most), told)


def _asked(
    rule: algebra.Rule, found: Benchmarked, known: tuple[float, float], ends: tuple[float, float], told: str
) -> Asked:
    return Asked(algebra.Claim(rule, estimate(*known, found, ends, rule)), found, told, known[1])


def estimate(
    value: float, error: float, found: Benchmarked, ends: tuple[float, float], rule: algebra.Rule
) -> algebra.Estimate:
    """A value with its standard error as an interval about a rule; NaN where there is nothing to be sure by."""
    n, z = found.documents, NORMAL.inv_cdf(1 - rule.alpha)
    mean = ends != NOWHERE
    if found.problem or n < LEAST_DOCUMENTS or not (math.isfinite(value) and math.isfinite(error)):
        return algebra.Estimate(value, math.nan, math.nan, rule.alpha, math.nan)
    if error < 0 or (error == 0 and not mean):
        return algebra.Estimate(value, math.nan, math.nan, rule.alpha, math.nan)
    centre, spread = _with_documents_added(value, error, n, ends, z * z) if mean else (value, error)
    low, high = min(value, centre - z * spread), max(value, centre + z * spread)
    above = (centre - rule.limit) / spread
    return algebra.Estimate(value, low, high, rule.alpha, NORMAL.cdf(-above if rule.direction == "higher" else above))


def _with_documents_added(
    value: float, error: float, n: int, ends: tuple[float, float], k: float
) -> tuple[float, float]:
    middle, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    squares = n * (n - 1) * error**2 + k * half**2 + (value - middle) ** 2 * n * k / (n + k)
    return (n * value + k * middle) / (n + k), math.sqrt(squares) / (n + k)


def _sentence(asked: Asked, outcome: algebra.Outcome) -> str:
    """Say what was measured, the bound that decides, and what would have to be known where it cannot tell."""
    rule, known = asked.claim.rule, asked.claim.estimate
    sure, both = 100 * (1 - rule.alpha), 100 * (1 - 2 * rule.alpha)
    least = rule.direction == "higher"
    bounds = {
        True: f", with {sure:.4g} % confidence at least {known.low:.4g}",
        False: f", with {sure:.4g} % confidence at most {known.high:.4g}",
    }
    shown = {
        "pass": bounds[least],
        "fail": bounds[not least],
        "inconclusive": f", with {both:.4g} % confidence between {known.low:.4g} and {known.high:.4g}",
        "error": "",
    }
    return f"{asked.told}{shown[outcome]}, {rule.asks}{_advice(asked, outcome)}"


def _advice(asked: Asked, outcome: algebra.Outcome) -> str:
    found, claim = asked.found, asked.claim
    if outcome == "error":
        known = f"{_counted(found)} and this metric have no standard error to judge by"
        return f"; {found.problem or known}"
    if outcome != "inconclusive":
        return ""
    if algebra.decide((claim,)) == ("pass",):
        return (
            "; shown alone, but not together with the rules about other tasks (Holm's correction); ask more documents"
        )
    room = abs(claim.rule.limit - claim.estimate.value)
    reach = NORMAL.inv_cdf(1 - claim.rule.alpha) + NORMAL.inv_cdf(USUAL_POWER)
    if not room or not asked.error:
        return "; too few documents to tell"
    needed = max(math.ceil(found.documents * (reach * asked.error / room) ** 2), found.documents + 1)
    return f"; too few documents to tell, about {needed:,} would do if it stays what it is"


def _counted(found: Benchmarked) -> str:
    return f"{found.documents:,} document{'' if found.documents == 1 else 's'}"
