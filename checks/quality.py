"""The quality gate: whether the tuned model is shown to be no worse than allowed on rows it has not seen, to have
forgotten no more than allowed, and to answer as it should."""

import math

from checks import algebra, answers
from loragate.answered import Answered
from loragate.comparison import Comparison
from loragate.limits import QualityLimits
from loragate.perplexity import Nll, ratio
from loragate.verdicts import Finding, Verdict, at_most, conclude, exactly


def judge(compared: Comparison, general: Comparison, answered: Answered, limits: QualityLimits) -> Verdict:
    """Judge the comparisons with the base on held-out and on general rows, and the tuned model's sampled answers."""
    before, after = compared.before.tokens, compared.after.tokens
    return conclude(
        "quality",
        [
            exactly("same_tokens", after, before, "number of tokens scored with the tuned model"),
            shown_ratio("perplexity_ratio", compared, limits.max_perplexity_ratio, limits.alpha),
            shown_ratio("general_ratio", general, limits.max_general_ratio, limits.alpha, "name more in data.general"),
            *answers.findings(answered, limits),
        ],
    )


def shown_ratio(
    metric: str, compared: Comparison, limit: float, alpha: float, advice: str = "hold more rows out"
) -> Finding:
    """Judge the interval of the ratio to the baseline: all of it must be at most what is allowed."""
    rule = algebra.Rule(metric, limit, comparator="baseline", kind="non-inferiority", alpha=alpha)
    p_value = compared.p_value if compared.limit == limit else math.nan  # it is about the limit that was asked about
    claim = algebra.Claim(rule, algebra.Estimate(compared.ratio, compared.low, compared.high, compared.alpha, p_value))
    (outcome,) = algebra.decide((claim,))
    return algebra.finding(
        claim, outcome, f"{_interval(compared, outcome)}, {rule.asks}; {_rows(compared, outcome, advice)}"
    )


def _interval(compared: Comparison, outcome: algebra.Outcome) -> str:
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


def _rows(compared: Comparison, outcome: algebra.Outcome, advice: str) -> str:
    """How many rows that rests on, and how many would do where they are too few."""
    rows = f"{compared.rows:,} row{'' if compared.rows == 1 else 's'}"
    if outcome == "error":
        return compared.problem or f"{rows}; the comparison on record is not the one that this rule asks for"
    if outcome != "inconclusive":
        return rows
    needed = compared.rows_needed
    if needed is None:
        return f"{rows} cannot tell, and nothing says how many would; {advice}"
    needed = max(needed, compared.rows + 1)
    return f"{rows} are too few to tell; about {needed:,} would do if the ratio stays what it is"


def perplexity_ratio(rule: str, before: Nll, after: Nll, limit: float) -> Finding:
    """Judge perplexity after / perplexity before against a limit, as it stands."""
    what = f"perplexity {before.perplexity:.3f} -> {after.perplexity:.3f}: the ratio"
    return at_most(rule, ratio(before, after), limit, what)
