"""The merge gate: whether the merged weights are what was trained, and nothing else."""

from loragate.limits import MergeLimits
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, none_of
from loragate.work import MergeEvidence


def judge(evidence: MergeEvidence, limits: MergeLimits) -> Verdict:
    """Judge divergences on held-out positions and the comparison of tensors with the base's."""
    limit = limits.max_kl_float32 if evidence.dtype == "float32" else limits.max_kl_bfloat16
    positions = f"over {evidence.positions:,} positions"
    return conclude(
        "merge",
        [
            at_least("positions_compared", evidence.positions, 1, "number of positions compared"),
            at_most(
                "merged_is_adapter",
                evidence.kl_adapter,
                limit,
                f"mean KL(adapter || merged) {positions}, in nats,",
            ),
            at_least(
                "merged_is_not_base",
                evidence.kl_base,
                limits.min_kl_from_base,
                f"mean KL(merged || base) {positions}, in nats,",
            ),
            none_of("adapted_weights_changed", evidence.unchanged, "adapted weights equal the base's"),
            none_of("other_weights_kept", evidence.altered, "weights without an adapter differ from the base's"),
            none_of("same_tensors", evidence.missing, "tensors are missing, added or of another shape"),
            _same_ties(evidence),
        ],
    )


def _same_ties(evidence: MergeEvidence) -> Finding:
    detail = "input and output embeddings are tied as in the base"
    return Finding("same_ties", evidence.same_ties, detail if evidence.same_ties else f"not so: {detail}")
