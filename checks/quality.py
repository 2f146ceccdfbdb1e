"""The quality gate: whether the tuned model is shown to be no worse than allowed on rows it has not seen, and stops.

It is held against the base, against the champion where there is one, against both on every slice of the rows, and
against the base on general rows that it must not forget. All rules that an interval on rows decides are judged
together; tasks of a benchmark are judged behind them, in a family of their own (`checks.benchmarks`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from checks import answers, benchmarks
from checks.intervals import Asked, counted, shown_ratios
from loragate.answered import Answered
from loragate.challenge import Against, Challenge, Sliced
from loragate.comparison import Comparison
from loragate.limits import QualityLimits
from loragate.perplexity import Nll
from loragate.verdicts import Finding, Verdict, at_most, conclude, exactly
from loragate.wear import Wear
from loragate.work import Trained

FRESH = "name new files under data.heldout or, where a share of the rows is held out, add rows to data.train"
"""How to get held-out rows that no challenger has looked at."""

NO_CHALLENGE = Challenge()
"""No champion yet, no slices, and nobody who counts looks."""


def judge(
    compared: Comparison,
    general: Comparison,
    answered: Answered,
    trained: Trained,
    limits: QualityLimits,
    challenge: Challenge = NO_CHALLENGE,
) -> Verdict:
    """Judge the comparisons on held-out and on general rows, how worn the former are, and the tuned model's answers.

    Args:
        general: With the base, on rows about what must not be forgotten.
        trained: What training itself measured on the held-out rows.
    """
    asked = [*rules(compared, limits, challenge), forgetting(general, limits)]
    shown = shown_ratios(asked)
    before, after = compared.before.tokens, compared.after.tokens
    findings = [
        exactly("same_tokens", after, before, "number of tokens scored with the tuned model"),
        *([heldout_wear(challenge.wear, asked, limits)] if challenge.wear else []),
        shown["perplexity_ratio"],
        _against(challenge.against, shown.get("champion_ratio")),
        *_slices(challenge, shown, limits),
        shown["general_ratio"],
        reloaded(compared.after, trained, limits),
        *answers.findings(answered, limits),
        *benchmarks.findings(answered.benchmarks, limits),
    ]
    return conclude("quality", findings)


def rules(compared: Comparison, limits: QualityLimits, challenge: Challenge) -> Iterator[Asked]:
    """Everything that an interval on the held-out rows decides.

    A slice's rule is of the second stage, and has the whole alpha: what a slice is not shown to be does not keep a
    release back, so its interval can only refuse, and worn rows must not blind it.
    """
    alpha = challenge.wear.alpha if challenge.wear else limits.alpha
    yield Asked("perplexity_ratio", compared, limits.max_perplexity_ratio, alpha)
    if challenge.against.compared is not None:
        yield Asked("champion_ratio", challenge.against.compared, limits.max_champion_ratio, alpha, "champion")
    for each in challenge.sliced:
        if each.compared.rows >= limits.min_slice_rows:
            yield Asked(each.rule, each.compared, limits.max_slice_ratio, limits.alpha, each.against, stage=2)


def forgetting(general: Comparison, limits: QualityLimits) -> Asked:
    """The rule about general rows: they are not the held-out ones, so no look wears them."""
    return Asked("general_ratio", general, limits.max_general_ratio, limits.alpha, advice="name more in data.general")


def heldout_wear(wear: Wear, asked: Sequence[Asked], limits: QualityLimits) -> Finding:
    """Judge whether the held-out rows can still show what the first stage asks, after all the looks at them."""
    first = [each for each in asked if each.stage == 1]
    least = len(first) * max((each.compared.least_alpha for each in first), default=0.0)
    earlier = "no earlier look at them is on record"
    if wear.looks:
        looks = "1 earlier look" if wear.looks == 1 else f"{wear.looks:,} earlier looks"
        earlier = f"{looks} at them or at some of them since {wear.since[:10]}"
    look = f"look number {wear.number:.4g} at these held-out rows"
    state = f"{look} has alpha {wear.alpha:.2g} of {limits.alpha:.4g} ({earlier})"
    if wear.alpha >= least:
        return Finding("heldout_wear", True, state, value=wear.alpha, limit=least)
    worn = f"the held-out rows are worn out: {state}, and {limits.draws:,} draws show nothing below {least:.2g}"
    detail = f"{worn}; hold out fresh rows ({FRESH})"
    return Finding("heldout_wear", False, detail, value=wear.alpha, limit=least, evidence="none")


def _against(against: Against, shown: Finding | None) -> Finding:
    """Say what came of the comparison with the champion, or why there is none."""
    own = f"these weights are those of {against.own}; " if against.own else ""
    if against.problem:
        return Finding("champion_ratio", False, own + against.problem, evidence="none")
    if shown is not None:
        return replace(shown, detail=f"{own}champion {against.release} -> tuned: {shown.detail}")
    if against.release:
        missing = f"{own}the comparison with the champion {against.release} is not on record"
        return Finding("champion_ratio", False, missing, evidence="none")
    none = "no other release was champion before it" if own else "no release of this model is champion yet"
    return Finding("champion_ratio", True, f"{own}{none}: nothing to compare with")


def _slices(challenge: Challenge, shown: dict[str, Finding], limits: QualityLimits) -> Iterator[Finding]:
    """Judge every slice: one that is shown to be worse than allowed refuses, one that cannot tell warns."""
    if challenge.slices > limits.max_slices:
        detail = f"the held-out rows name {challenge.slices:,} slices, at most {limits.max_slices:,} allowed"
        fix = "give rows that belong together the same name, or raise gates.quality.max_slices"
        yield Finding(
            "slices", False, f"{detail}; {fix}", value=challenge.slices, limit=limits.max_slices, evidence="none"
        )
    for each in challenge.sliced:
        found = shown.get(each.rule) or _small(each, limits)
        yield replace(found, severity="warn") if found.status == "inconclusive" else found


def _small(each: Sliced, limits: QualityLimits) -> Finding:
    rows, found = counted(each.compared.rows), each.compared
    detail = (
        f"{rows}, fewer than the {limits.min_slice_rows:,} that a slice is judged by; the ratio is {found.ratio:.4g}"
    )
    return Finding(each.rule, False, detail, value=found.ratio, low=found.low, high=found.high, evidence="little")


def reloaded(tuned: Nll, trained: Trained, limits: QualityLimits) -> Finding:
    """Judge whether the adapter on disk scores the held-out rows as it did in training when it was saved."""
    before = next((p.heldout_loss for p in trained.curve if p.step == trained.best_step), None)
    apart = abs(tuned.mean - before) if before is not None else math.nan
    exact = trained.dtype == "float32"
    limit = limits.max_reload_difference_float32 if exact else limits.max_reload_difference_bfloat16
    return at_most("reloaded_as_trained", apart, limit, "held-out loss now and in training: difference in nats a token")
