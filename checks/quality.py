"""The quality gate: whether the tuned model is better than the base on rows it has not seen, and stops."""

from collections.abc import Sequence

from loragate.limits import QualityLimits
from loragate.perplexity import Nll, ratio
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, exactly
from loragate.work import Answer


def judge(baseline: Nll, tuned: Nll, answers: Sequence[Answer], limits: QualityLimits) -> Verdict:
    """Judge total perplexities over the same held-out tokens and the tuned model's sampled answers."""
    return conclude(
        "quality",
        [
            exactly("same_tokens", tuned.tokens, baseline.tokens, "number of tokens scored with the tuned model"),
            perplexity_ratio("perplexity_ratio", baseline, tuned, limits.max_perplexity_ratio),
            stop_share(answers, limits.min_stop_share),
        ],
    )


def perplexity_ratio(rule: str, before: Nll, after: Nll, limit: float) -> Finding:
    """Judge perplexity after / perplexity before against a limit."""
    what = f"perplexity {before.perplexity:.3f} -> {after.perplexity:.3f}: the ratio"
    return at_most(rule, ratio(before, after), limit, what)


def stop_share(answers: Sequence[Answer], limit: float) -> Finding:
    """Judge the share of answers that ended with a stop token; no answers is a share of nothing and does not pass."""
    share = sum(answer.stopped for answer in answers) / len(answers) if answers else float("nan")
    return at_least("stop_share", share, limit, f"share of {len(answers)} answers that end with a stop token")
