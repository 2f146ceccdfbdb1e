"""What is odd about a run file, judged before any of it is trained: each rule with its reason and its source.

Most rules warn: training goes on, and the gates after it say what became of it. Only what cannot work refuses.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from loragate.config import Train
from loragate.limits import PlanLimits
from loragate.plan import GIGABYTE, Plan
from loragate.presets import PRESETS
from loragate.verdicts import Finding, at_least, at_most

USUAL_SCALE = 2.0
"""Largest alpha / r of the recipes that the limits of the learning rate come from."""


def lint(settings: Train, plan: Plan, limits: PlanLimits) -> tuple[Finding, ...]:
    """Judge the settings of a training by its rows, its model and its device."""
    return (
        *_adapter(settings, plan, limits),
        *_course(settings, plan, limits),
        *_extras(settings, limits),
        *_numbers(plan),
        *_lengths(plan),
        *_memory(settings, plan, limits),
    )


def _refusal(finding: Finding, reason: str) -> Finding:
    return finding if finding.passed else replace(finding, detail=f"{finding.detail}: {reason}")


def _warning(finding: Finding, reason: str) -> Finding:
    return replace(_refusal(finding, reason), severity="warn")


def _adapter(settings: Train, plan: Plan, limits: PlanLimits) -> Iterator[Finding]:
    small = plan.rows.rows < limits.small_rows
    yield _warning(
        at_most("rank_for_rows", plan.model.rank, limits.max_small_rank, f"rank, for {plan.rows.rows:,} rows,")
        if small
        else Finding("rank_for_rows", True, f"{plan.rows.rows:,} rows are not few", value=plan.model.rank),
        "few rows do not fill a large rank, which then learns them by heart; ranks of 4 and 64 did alike on tens of "
        "thousands of rows (Hu et al. 2021, arXiv 2106.09685, table 6)",
    )
    yield _warning(
        at_most("rank_for_width", plan.model.rank, plan.model.narrowest, "rank"),
        "beyond the narrowest side of a module it adds parameters and nothing that they could say",
    )
    yield _warning(
        at_least("projections", len(plan.model.kinds), limits.min_projections, "number of projections adapted"),
        "one alone learns less than two of half the rank (Hu et al. 2021, arXiv 2106.09685, table 5)",
    )
    lost = [key for key, value in PRESETS[settings.preset].items() if getattr(settings, key) != value]
    kept = [
        key
        for key, value in PRESETS[settings.preset].items()
        if key not in lost and value != Train.model_fields[key].default
    ]
    yield Finding(
        "preset",
        not lost or bool(kept),
        f"train.preset {settings.preset} sets nothing: the run file itself sets {', '.join(lost)}; remove those keys"
        if lost and not kept
        else f"train.preset is {settings.preset}",
        severity="warn",
    )


def acting_rate(settings: Train) -> float:
    """The learning rate as it acts: a scale beyond the usual one multiplies every step that the adapter takes.

    The optimiser's steps do not depend on the gradient's size, so a step of B moves the weights by scale * rate * A.
    """
    scale = settings.alpha / (math.sqrt(settings.r) if settings.rslora else settings.r)
    return settings.learning_rate * max(1.0, scale / USUAL_SCALE)


def _course(settings: Train, plan: Plan, limits: PlanLimits) -> Iterator[Finding]:
    rate = acting_rate(settings)
    what = "learning rate" if rate == settings.learning_rate else "learning rate, at the scale of alpha,"
    yield _warning(
        at_least("learning_rate_low", rate, limits.min_learning_rate, what),
        "adapters want ten times the rate of full training, and hardly move below it (TRL's guide to peft; Unsloth "
        "and the tutorials for peft use 1e-4 to 2e-4)",
    )
    yield at_most("learning_rate_usable", rate, limits.max_usable_rate, what)
    yield _warning(
        at_most("learning_rate_high", rate, limits.max_learning_rate, what),
        "the largest rate of Hu et al. 2021 is 5e-4 (arXiv 2106.09685, table 9); beyond twice that training may "
        "break down",
    )
    small = plan.rows.rows < limits.small_rows
    yield _warning(
        at_most("epochs", settings.epochs, limits.max_small_epochs, f"number of epochs, over {plan.rows.rows:,} rows,")
        if small
        else Finding("epochs", True, f"{plan.rows.rows:,} rows are not few", value=settings.epochs),
        "few rows are learnt by heart when they come that often (Unsloth's guide: 1 to 3)",
    )
    yield _warning(
        at_most("batch_for_rows", settings.batch_size, plan.rows.rows, "number of rows in a step"),
        "every step is then the whole of an epoch, and there are as few steps as epochs",
    )


def _extras(settings: Train, limits: PlanLimits) -> Iterator[Finding]:
    yield _warning(
        at_most("neftune_alpha", settings.neftune_alpha, limits.max_neftune_alpha, "train.neftune_alpha"),
        "nothing beyond 15 has been published (Jain et al. 2023, arXiv 2310.05914: 5 to 15), and noise hides the words",
    )
    patience = f"train.early_stopping, over {settings.epochs} epochs,"
    yield _warning(
        at_most("early_stopping", settings.early_stopping, max(0, settings.epochs - 2), patience),
        "it has no effect: the first evaluation has nothing to be worse than, and after the last one training ends "
        "anyway",
    )


def _numbers(plan: Plan) -> Iterator[Finding]:
    compute, dtype = plan.model.compute_dtype or plan.model.dtype, plan.model.dtype
    yield Finding(
        "compute_dtype",
        compute == dtype,
        f"a 4-bit base is multiplied in {compute}, training is in {dtype}"
        + (
            "" if compute == dtype else ": every layer would convert and round (Dettmers et al. 2023, arXiv 2305.14314)"
        ),
    )
    fast = dtype in ("float32", plan.device.fast_dtype)
    yield Finding(
        "dtype_fast",
        fast,
        f"training is in {dtype}, which {plan.device.name} {'multiplies' if fast else 'emulates, many times slower'}"
        + ("" if fast else "; train.dtype: auto takes what it multiplies fast (own measurement: 20 to 36 times)"),
        severity="warn",
    )


def _lengths(plan: Plan) -> Iterator[Finding]:
    positions = plan.model.positions or plan.rows.max_tokens
    yield _refusal(
        at_most("longest_row", plan.rows.longest, positions, "longest row in tokens"),
        "the model was made for no longer texts, and knows no position beyond (max_position_embeddings)",
    )
    yield _warning(
        at_most("max_tokens", plan.rows.max_tokens, positions, "data.max_tokens"),
        "the model was made for no longer texts (max_position_embeddings)",
    )


def _memory(settings: Train, plan: Plan, limits: PlanLimits) -> Iterator[Finding]:
    memory, device = plan.memory, plan.device.memory
    parts = {
        "weights": memory.weights,
        "adapter, gradient and optimiser": memory.adapter,
        f"activations{' with gradient checkpointing' * plan.checkpointing}": memory.activations or 0,
        "gradients of a layer": memory.backward,
        "logits": memory.logits,
        "libraries": memory.runtime,
    }
    told = ", ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in parts.items())
    share = memory.total / device if device else math.nan
    what = f"estimated memory of {memory.total / GIGABYTE:.2f} GB ({told}) / {device / GIGABYTE:.2f} GB of the device"
    yield _refusal(
        at_most("memory", share, limits.max_memory_share, what),
        f"it does not fit; {_way_out(settings, plan, limits)}lower train.forward_tokens or data.max_tokens, or use "
        "method qlora",
    )
    yield Finding(
        "memory_complete",
        memory.activations is not None,
        "every part of the memory could be estimated"
        if memory.activations is not None
        else "what this model keeps for its backward pass cannot be counted without running it; the estimate lacks it",
        severity="warn",
    )


def _way_out(settings: Train, plan: Plan, limits: PlanLimits) -> str:
    """The advice to allow gradient checkpointing, where it is off and would make training fit."""
    saved = plan.model.memory.recomputing
    if settings.gradient_checkpointing != "off" or not saved.fits(plan.device.memory, limits.max_memory_share):
        return ""
    return f"set train.gradient_checkpointing to auto ({saved.total / GIGABYTE:.2f} GB), "
