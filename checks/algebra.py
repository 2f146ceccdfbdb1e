"""The algebra of gates that judge by an interval: what a rule asks, what was estimated, and what follows.

    pass           the whole interval is where the rule allows it
    fail           the whole interval is where it does not
    inconclusive   neither: there is too little evidence
    error          nothing that could be judged

Several rules of one gate are judged together, in stages. Within a stage Holm's correction bounds the probability that
any rule passes which should not. A later stage is looked at only when every rule of the one before has passed, and then
with its whole alpha. That order was fixed before the numbers came, so nothing is lost by it: a rule of a later stage
can pass wrongly only after all before it have passed, and were one of those wrong, that alone had at most probability
alpha; were all of them right, the first wrong one is a rule of the later stage, which Holm bounds. (Fixed sequences:
Maurer, Hothorn and Lehmacher 1995, in Vollmar, ed., Biometrie in der chemisch-pharmazeutischen Industrie 6, 3; of
families of rules, as serial gatekeeping: Westfall and Krishen 2001, J. Statist. Plann. Inference 99, 25.)

The gates of a road are such a sequence, too: they have one order, and the road ends at the first that does not pass. So
each may spend its whole alpha, and the probability that a release was let through by any wrong pass is still at most
the largest alpha of a gate. What the correction is about is passing; failing needs none, since a road that refuses one
model too many lets nothing bad through.

Laws: NaN, infinities and empty evidence never pass; a pass of several rules together is a pass of each alone; more
confidence asked for never turns anything into a pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loragate.verdicts import Evidence, Finding

Outcome = Literal["pass", "fail", "inconclusive", "error"]
Comparator = Literal["absolute", "baseline", "champion", "previous"]

LARGEST_ALPHA = 0.5
"""Beyond it the two bounds of an interval change places."""
AGAINST = {"absolute": "", "baseline": " x baseline", "champion": " x champion", "previous": " x previous"}
EVIDENCE: dict[Outcome, Evidence] = {"pass": "enough", "fail": "enough", "inconclusive": "little", "error": "none"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a gate asks of one number.

    Attributes:
        metric: Name of the number.
        limit: What it is held against, in its own unit; for a ratio to baseline or champion, a ratio.
        direction: Which way is better.
        comparator: What the number is relative to; previous is the rung of the ladder that a model was made from.
        kind: superiority: shown to be better than the limit; non-inferiority: shown to be worse than the limit by no
            more than the margin; equivalence: shown to be within the margin of it, on either side.
        margin: Distance from the limit that is allowed, in the number's unit; superiority has none.
        alpha: Probability with which the rule may let pass what it should not.
        min_power: Least power of the evidence, below which nothing passes; 0 asks for none.
        stage: Rules of the same stage share their alpha; those of a later one pass only after all of the earlier ones.
    """

    metric: str
    limit: float
    direction: Literal["lower", "higher"] = "lower"
    comparator: Comparator = "absolute"
    kind: Literal["superiority", "non-inferiority", "equivalence"] = "superiority"
    margin: float = 0.0
    alpha: float = 0.05
    min_power: float = 0.0
    stage: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no rule."""
        if not 0 < self.alpha <= LARGEST_ALPHA:
            raise ValueError(f"{self.metric}: alpha is {self.alpha}, must be above 0 and at most {LARGEST_ALPHA}")
        if self.margin < 0 or (self.margin and self.kind == "superiority"):
            raise ValueError(f"{self.metric}: a margin of {self.margin} does not go with {self.kind}")

    @property
    def allowed(self) -> tuple[float, float]:
        """The least and the largest value that the rule allows; superiority excludes the limit itself."""
        if self.kind == "equivalence":
            return self.limit - self.margin, self.limit + self.margin
        if self.direction == "lower":
            return -math.inf, self.limit + self.margin
        return self.limit - self.margin, math.inf

    @property
    def asks(self) -> str:
        """What is allowed, in words."""
        (least, most), of = self.allowed, AGAINST[self.comparator]
        if self.kind == "equivalence":
            return f"between {least:.4g} and {most:.4g}{of} allowed"
        if self.kind == "superiority":
            word = "less" if self.direction == "lower" else "more"
            return f"{word} than {self.limit:.4g}{of} required"
        return f"at most {most:.4g}{of} allowed" if self.direction == "lower" else f"at least {least:.4g}{of} required"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a number.

    Attributes:
        value: The best guess.
        low, high: The true value is at least low, and at most high, each with confidence 1 - alpha.
        alpha: Probability with which either bound may be wrong.
        p_value: Probability of evidence that speaks for the rule like this, were the true value at the rule's edge.
        power: Probability with which such evidence shows what the rule asks; only rules with a least power look at it.
    """

    value: float
    low: float
    high: float
    alpha: float
    p_value: float
    power: float = math.nan


@dataclass(frozen=True, slots=True)
class Claim:
    """A rule and what is known of its number."""

    rule: Rule
    estimate: Estimate


def decide(claims: Sequence[Claim]) -> tuple[Outcome, ...]:
    """Judge the rules of one gate together.

    A rule passes where its own interval allows it, its p-value, adjusted by Holm for all rules of its stage, is at most
    its alpha, and all rules of earlier stages pass: whatever holds in truth, the probability that any rule passes
    wrongly is then at most alpha. One that cannot be judged counts in the adjustment with a p-value of 1.
    """
    outcomes = [_alone(claim) for claim in claims]
    opened = True
    for stage in sorted({claim.rule.stage for claim in claims}):
        numbers = [number for number, claim in enumerate(claims) if claim.rule.stage == stage]
        p_values = [claims[n].estimate.p_value if outcomes[n] != "error" else 1.0 for n in numbers]
        for number, adjusted in zip(numbers, holm(p_values), strict=True):
            if outcomes[number] == "pass" and not (opened and adjusted <= claims[number].rule.alpha):
                outcomes[number] = "inconclusive"
        opened = opened and all(outcomes[number] == "pass" for number in numbers)
    return tuple(outcomes)


def _alone(claim: Claim) -> Outcome:
    rule, estimate = claim.rule, claim.estimate
    numbers = (estimate.value, rule.limit, rule.margin, estimate.low, estimate.high, estimate.p_value)
    if not all(map(math.isfinite, numbers[:3])) or any(map(math.isnan, numbers)):
        return "error"
    if not (estimate.low <= estimate.value <= estimate.high and 0 <= estimate.p_value <= 1):
        return "error"
    if not 0 < estimate.alpha <= rule.alpha:
        return "error"  # bounds that are less sure than the rule asks
    if _outside(rule, estimate):
        return "fail"
    return "pass" if _inside(rule, estimate) and _powerful(rule, estimate) else "inconclusive"


def _inside(rule: Rule, estimate: Estimate) -> bool:
    least, most = rule.allowed
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return False
    if rule.kind == "superiority":
        return least < estimate.low and estimate.high < most
    return least <= estimate.low and estimate.high <= most


def _outside(rule: Rule, estimate: Estimate) -> bool:
    least, most = rule.allowed
    if rule.kind == "superiority":
        return estimate.high <= least or estimate.low >= most
    return estimate.high < least or estimate.low > most


def _powerful(rule: Rule, estimate: Estimate) -> bool:
    return not rule.min_power or estimate.power >= rule.min_power


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values by Holm's step-down (Holm 1979, Scand. J. Statist. 6, 65), in the order they came.

    Of m values the k-th smallest is multiplied by m - k + 1; none is smaller than one before it, none above 1. NaN
    counts as 1.
    """
    known = [1.0 if math.isnan(value) else value for value in p_values]
    adjusted, largest = [1.0] * len(known), 0.0
    for rank, number in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        largest = max(largest, min(1.0, (len(known) - rank) * known[number]))
        adjusted[number] = largest
    return tuple(adjusted)


def finding(claim: Claim, outcome: Outcome, detail: str) -> Finding:
    """Put an outcome into a finding, its interval beside the value."""
    estimate = claim.estimate
    return Finding(
        claim.rule.metric,
        outcome == "pass",
        detail,
        value=estimate.value,
        limit=claim.rule.limit,
        low=estimate.low,
        high=estimate.high,
        evidence=EVIDENCE[outcome],
    )
