"""The training gate: whether training did what it says, everywhere and finitely."""

import math

from loragate.config import Train
from loragate.limits import TrainingLimits
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, exactly, none_of
from loragate.work import ADAPTER_SETTINGS, AdapterEvidence, Trained


def judge(trained: Trained, adapter: AdapterEvidence, settings: Train, limits: TrainingLimits) -> Verdict:
    """Judge a training by its curve and by the adapter it left on disk, with the run file's settings."""
    return conclude(
        "training",
        [
            _finite_curve(trained),
            _heldout_measured(trained),
            _gradient_bounded(trained, limits),
            at_least("modules_adapted", trained.modules, 1, "number of modules with an adapter"),
            none_of("weights_finite", adapter.not_finite, "released adapter tensors hold NaN or infinity"),
            none_of("lora_b_not_zero", adapter.zero_modules, "modules have an adapter that is all zero"),
            none_of("gradient_reached", trained.modules_without_gradient, "adapted modules never got a gradient"),
            exactly(
                "trainable_count",
                trained.trainable,
                trained.predicted_trainable,
                "number of trainable parameters",
            ),
            exactly(
                "released_count",
                adapter.parameters,
                trained.trainable,
                "number of weights in the released adapter",
            ),
            _same_settings(adapter, settings),
            _as_wanted(trained),
        ],
    )


def _finite_curve(trained: Trained) -> Finding:
    bad = [p.step for p in trained.curve if not (math.isfinite(p.loss) and math.isfinite(p.grad_norm))]
    detail = (
        f"loss or gradient is not finite at step {bad[0]}" if bad else f"finite in all {len(trained.curve):,} steps"
    )
    return Finding("loss_finite", bool(trained.curve) and not bad, detail)


def _gradient_bounded(trained: Trained, limits: TrainingLimits) -> Finding:
    """Judge the largest gradient norm against the first step's; norms that are not finite have a rule of their own."""
    norms = [p.grad_norm for p in trained.curve if math.isfinite(p.grad_norm)]
    growth = max(norms) / norms[0] if norms and norms[0] > 0 else math.nan
    return at_most("gradient_growth", growth, limits.max_gradient_growth, "largest gradient norm / the first step's")


def _heldout_measured(trained: Trained) -> Finding:
    losses = [p.heldout_loss for p in trained.curve if p.heldout_loss is not None]
    best = min((loss for loss in losses if math.isfinite(loss)), default=math.nan)
    detail = f"best held-out loss {best:.4f} nats per token, at step {trained.best_step} of {len(trained.curve)}"
    return Finding("heldout_loss_finite", math.isfinite(best) and trained.best_step > 0, detail, value=best)


def _same_settings(adapter: AdapterEvidence, settings: Train) -> Finding:
    """An adapter is multiplied by what its own file says, whatever it was trained with."""
    wanted = (
        *(settings.r, settings.alpha, settings.rslora, settings.dora),
        *(dict(settings.rank_pattern), dict(settings.alpha_pattern)),
    )
    other = tuple(
        f"{name} is {adapter.settings.get(name)}, trained with {value}"
        for name, value in zip(ADAPTER_SETTINGS, wanted, strict=True)
        if adapter.settings.get(name) != value
    )
    return none_of("scale_as_trained", other, "settings of the released adapter are not those it was trained with")


def _as_wanted(trained: Trained) -> Finding:
    """Say how the steps were computed; a step that could not be captured is as right, but slow, and costs a warning."""
    ways = ", ".join(trained.ways) or "the libraries' own operations"
    detail = f"no CUDA graph, {trained.fallback}; steps ran" if trained.fallback else "steps ran"
    return Finding("steps_as_wanted", not trained.fallback, f"{detail} by {ways}", severity="warn")
