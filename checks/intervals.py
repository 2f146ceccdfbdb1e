"""Rules about a ratio of perplexities: judged by intervals, all of a gate together, and said in a sentence each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from checks import algebra
from loragate.comparison import Comparison
from loragate.verdicts import Finding


@dataclass(frozen=True, slots=True)
class Asked:
    """A rule about a comparison: its ratio must be shown to be at most a limit.

    Attributes:
        metric: Name of the rule.
        alpha: Probability with which it may let pass what it should not.
        stage: As in `algebra.Rule`.
        advice: How to get more evidence.
    """

    metric: str
    compared: Comparison
    limit: float
    alpha: float
    comparator: algebra.Comparator = "baseline"
    stage: int = 1
    advice: str = "hold more rows out"

    @property
    def claim(self) -> algebra.Claim:
        """The rule and what is known; the comparison must be about the limit that is asked for."""
        found = self.compared
        rule = algebra.Rule(
            self.metric,
            self.limit,
            comparator=self.comparator,
            kind="non-inferiority",
            alpha=self.alpha,
            stage=self.stage,
        )
        p_value = found.p_value if found.limit == self.limit else math.nan
        return algebra.Claim(rule, algebra.Estimate(found.ratio, found.low, found.high, found.alpha, p_value))


def shown_ratios(asked: Sequence[Asked]) -> dict[str, Finding]:
    """Judge rules together; findings by the names of the rules."""
    claims = [each.claim for each in asked]
    outcomes = algebra.decide(claims)
    shut = {each.stage for each, outcome in zip(asked, outcomes, strict=True) if outcome != "pass"}
    return {
        each.metric: algebra.finding(claim, outcome, _sentence(each, claim, outcome, min(shut, default=each.stage)))
        for each, claim, outcome in zip(asked, claims, outcomes, strict=True)
    }


def _sentence(asked: Asked, claim: algebra.Claim, outcome: algebra.Outcome, shut: int) -> str:
    """Say what an outcome rests on; `shut` is the first stage with a rule that does not pass."""
    alone = outcome == "inconclusive" and algebra.decide((claim,)) == ("pass",)
    rows = _together(asked, shut < asked.stage) if alone else _rows(asked, outcome)
    return f"{interval(asked.compared, outcome)}, {claim.rule.asks}; {rows}"


def interval(compared: Comparison, outcome: algebra.Outcome) -> str:
    """Both perplexities, their ratio, and the bound that decides."""
    sure, both = 100 * (1 - compared.alpha), 100 * (1 - 2 * compared.alpha)
    bounds = {
        "pass": f", with {sure:.4g} % confidence at most {compared.high:.4g}",
        "fail": f", with {sure:.4g} % confidence at least {compared.low:.4g}",
        "inconclusive": f", with {both:.4g} % confidence between {compared.low:.4g} and {compared.high:.4g}",
        "error": "",
    }
    perplexities = f"perplexity {compared.before.perplexity:.3f} -> {compared.after.perplexity:.3f}"
    return f"{perplexities}: the ratio is {compared.ratio:.4g}{bounds[outcome]}"


def counted(rows: int) -> str:
    """A number of rows in words."""
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def _together(asked: Asked, shut: bool) -> str:
    rows = counted(asked.compared.rows)
    if shut:
        return f"{rows} show it alone; it counts for nothing, since a rule about all rows does not pass"
    return f"{rows} show it alone, but not together with the gate's other rules (Holm's correction); {asked.advice}"


def _rows(asked: Asked, outcome: algebra.Outcome) -> str:
    """How many rows that rests on, and how many would do where they are too few."""
    compared = asked.compared
    rows = counted(compared.rows)
    if outcome == "error":
        return compared.problem or f"{rows}; the comparison on record is not the one that this rule asks for"
    if outcome != "inconclusive":
        return rows
    needed = compared.rows_needed
    if needed is None:
        return f"{rows} cannot tell, and nothing says how many would; {asked.advice}"
    needed = max(needed, compared.rows + 1)
    return f"{rows} are too few to tell; about {needed:,} would do if the ratio stays what it is"
