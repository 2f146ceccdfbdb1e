"""The quality gate: whether the tuned model is shown to be no worse than allowed on rows it has not seen, and stops."""

import math
from collections.abc import Sequence

from checks import algebra
from loragate.comparison import Comparison
from loragate.limits import QualityLimits
from loragate.perplexity import Nll
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, exactly
from loragate.work import Answer, Trained


def judge(compared: Comparison, answers: Sequence[Answer], trained: Trained, limits: QualityLimits) -> Verdict:
    """Judge the comparison with the base on the same held-out rows, and the tuned model's sampled answers.

    Args:
        trained: What training itself measured on those rows.
    """
    before, after = compared.before.tokens, compared.after.tokens
    return conclude(
        "quality",
        [
            exactly("same_tokens", after, before, "number of tokens scored with the tuned model"),
            reloaded(compared.after, trained, limits),
            shown_ratio("perplexity_ratio", compared, limits.max_perplexity_ratio, limits.alpha),
            stop_share(answers, limits.min_stop_share),
        ],
    )


def shown_ratio(
    metric: str, compared: Comparison, limit: float, alpha: float, of: algebra.Comparator = "baseline"
) -> Finding:
    """Judge the interval of a ratio of perplexities: all of it must be at most what is allowed."""
    rule = algebra.Rule(metric, limit, comparator=of, kind="non-inferiority", alpha=alpha)
    p_value = compared.p_value if compared.limit == limit else math.nan  # it is about the limit that was asked about
    claim = algebra.Claim(rule, algebra.Estimate(compared.ratio, compared.low, compared.high, compared.alpha, p_value))
    (outcome,) = algebra.decide((claim,))
    return algebra.finding(claim, outcome, f"{_interval(compared, outcome)}, {rule.asks}; {_rows(compared, outcome)}")


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


def _rows(compared: Comparison, outcome: algebra.Outcome) -> str:
    """How many rows that rests on, and how many would do where they are too few."""
    rows = f"{compared.rows:,} row{'' if compared.rows == 1 else 's'}"
    if outcome == "error":
        return compared.problem or f"{rows}; the comparison on record is not the one that this rule asks for"
    if outcome != "inconclusive":
        return rows
    needed = compared.rows_needed
    if needed is None:
        return f"{rows} cannot tell, and nothing says how many would; hold more rows out"
    needed = max(needed, compared.rows + 1)
    return f"{rows} are too few to tell; about {needed:,} would do if the ratio stays what it is"


def reloaded(tuned: Nll, trained: Trained, limits: QualityLimits) -> Finding:
    """Judge whether the adapter on disk scores the held-out rows as it did in training when it was saved."""
    before = next((p.heldout_loss for p in trained.curve if p.step == trained.best_step), None)
    apart = abs(tuned.mean - before) if before is not None else math.nan
    exact = trained.dtype == "float32"
    limit = limits.max_reload_difference_float32 if exact else limits.max_reload_difference_bfloat16
    return at_most("reloaded_as_trained", apart, limit, "held-out loss now and in training: difference in nats a token")


def stop_share(answers: Sequence[Answer], limit: float) -> Finding:
    """Judge the share of answers that ended with a stop token; no answers is a share of nothing and does not pass."""
    share = sum(answer.stopped for answer in answers) / len(answers) if answers else float("nan")
    return at_least("stop_share", share, limit, f"share of {len(answers)} answers that end with a stop token")
