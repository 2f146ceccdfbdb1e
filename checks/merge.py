"""The merge gate: whether the merged weights are what was trained, and nothing else.

QLoRA has two merges to choose from. What the quality gate let pass is the trained model, so the nearest to that by
KL(trained || candidate) is released; the other only where both are within the gate's limit and the nearest one's
perplexity is worse by more than a limit of its own. The choice is never worse than peft's default, whichever is meant
by that: into the base as it is, that is a candidate; into the quantised base, that is the de-quantised candidate
quantised once more, which rounds most of the adapter away, while the candidate itself is what was trained, rounded
once to the number format of the release.
"""

import math
from collections.abc import Sequence

from checks.ladder import HopLimits, judge_hop
from loragate.artifact_work import MergeEvidence
from loragate.ladder import Divergence, Hop
from loragate.limits import MergeLimits
from loragate.record import Merge, MergeCandidate
from loragate.verdicts import Finding, Verdict, at_least, conclude, none_of


def choose(candidates: Sequence[MergeCandidate], dtype: str, limits: MergeLimits) -> MergeCandidate:
    """Choose the merge to release: the nearest to what was trained, unless another near one says it clearly better."""
    nearest = min(candidates, key=_distance)
    near = [each for each in candidates if _distance(each) <= _max_kl(dtype, limits)]
    best = min(near, key=lambda each: each.nll.perplexity, default=nearest)
    worse = nearest.nll.perplexity > limits.max_candidate_perplexity_ratio * best.nll.perplexity
    return best if worse else nearest


def _distance(candidate: MergeCandidate) -> float:
    """Its divergence; what is not a number is the farthest."""
    return candidate.kl if math.isfinite(candidate.kl) else math.inf


def _max_kl(dtype: str, limits: MergeLimits) -> float:
    return limits.max_kl_float32 if dtype == "float32" else limits.max_kl_bfloat16


def judge(
    evidence: MergeEvidence, hop: Hop, from_base: Divergence, limits: MergeLimits, *, alpha: float, merged: Merge
) -> Verdict:
    """Judge the step from the tuned model to the merged one, the tensors on disk, and the choice of a merge.

    Args:
        from_base: How far the merged model's predictions are from the base's.
        alpha: Probability with which the bound of the perplexity's interval may be wrong.
    """
    float32 = evidence.dtype == "float32"
    agreement = limits.min_top1_agreement_float32 if float32 else limits.min_top1_agreement_bfloat16
    step = HopLimits(limits.max_perplexity_ratio, _max_kl(evidence.dtype, limits), agreement, alpha)
    return conclude(
        "merge",
        [
            *judge_hop(hop, step),
            at_least(
                "merged_is_not_base",
                from_base.kl,
                limits.min_kl_from_base,
                f"mean KL(base || merged) over {from_base.positions:,} positions, in nats,",
            ),
            none_of("adapted_weights_changed", evidence.unchanged, "adapted weights equal the base's"),
            none_of("other_weights_kept", evidence.altered, "weights without an adapter differ from the base's"),
            none_of("same_tensors", evidence.missing, "tensors are missing, added or of another shape"),
            _same_ties(evidence),
            none_of(
                "same_tokenizer",
                evidence.other_tokenizer,
                "parts of its tokenizer are not the base's",
            ),
            *([_best_candidate(merged, limits)] if merged.candidates else []),
        ],
    )


def _same_ties(evidence: MergeEvidence) -> Finding:
    detail = "input and output embeddings are tied as in the base"
    return Finding("same_ties", evidence.same_ties, detail if evidence.same_ties else f"not so: {detail}")


def _best_candidate(merged: Merge, limits: MergeLimits) -> Finding:
    """Whether the candidate that was kept is the one that the numbers on record choose."""
    best = choose(merged.candidates, merged.dtype, limits)
    said = "; ".join(
        f"{each.name}: mean KL(trained || candidate) {each.kl:.4g}, perplexity {each.nll.perplexity:.4g}"
        for each in merged.candidates
    )
    passed = merged.chosen == best.name and math.isfinite(best.kl) and math.isfinite(best.nll.perplexity)
    return Finding("best_candidate", passed, f"{merged.chosen} was kept of {said}", value=best.kl)
