"""The preflight gate: whether training would compute what it says, tried on real rows before it starts."""

from dataclasses import replace

from loragate.limits import PreflightLimits
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, exactly, none_of
from loragate.work import PreflightEvidence


def judge(evidence: PreflightEvidence, limits: PreflightLimits) -> Verdict:
    """Judge what a trial of training's own arithmetic found."""
    exact = evidence.dtype == "float32"
    ways = "packed" if evidence.packed else "padded, because the model's attention does not allow packs"
    return conclude(
        "preflight",
        [
            at_least("rows_tried", evidence.rows, 1, "number of rows tried"),
            at_most(
                "starts_as_base",
                evidence.start_difference,
                limits.max_start_difference_dora if evidence.dora else limits.max_start_difference,
                "largest difference that the fresh adapter makes to a logit",
            ),
            at_most(
                "row_losses_equal",
                evidence.row_difference,
                limits.max_row_difference_float32 if exact else limits.max_row_difference_bfloat16,
                f"rows {ways}: largest difference of a row's loss from the model's own, as a share,",
            ),
            at_most(
                "gradient_does_not_depend_on_batching",
                evidence.gradient_difference,
                limits.max_gradient_difference_float32 if exact else limits.max_gradient_difference_bfloat16,
                "difference of the gradients of all rows together and one by one, as a share,",
            ),
            _stops_taught(evidence),
            none_of("gradient_reaches", evidence.modules_without_gradient, "adapted modules get no gradient"),
            exactly(
                "trainable_count",
                evidence.trainable,
                evidence.predicted_trainable,
                "number of trainable parameters",
            ),
            at_least("modules_adapted", evidence.modules, 1, "number of modules with an adapter"),
        ],
    )


def _stops_taught(evidence: PreflightEvidence) -> Finding:
    """Whether the rows that training reads still teach answers to end: a mask shifted by one token does not."""
    what = "number of rows whose answers are not taught to end"
    finding = exactly("stops_taught", evidence.unended, 0, what)
    return replace(finding, detail=f"{finding.detail}: {evidence.first_unended}") if evidence.unended else finding
