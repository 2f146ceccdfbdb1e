"""Train the adapter."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows, recipe, section
from loragate.plan import Plan
from loragate.refs import Ref
from loragate.work import AdapterEvidence, Preflight, PreflightEvidence, TrainAdapter, Trained
from tasks.models import PASSES
from tasks.policies import STEP

CODE = (
    *PASSES,
    *(f"loragate.engines.{name}" for name in ("adapters", "captured", "checkpoints", "flat", "scoring", "steps")),
    "loragate.engines.training",
    "loragate.presets",
)
"""Modules that decide what a training makes of its rows."""


def libraries(method: str) -> tuple[str, ...]:
    """Libraries that decide it, too."""
    return ("torch", "transformers", "peft", *(("bitsandbytes",) if method == "qlora" else ()))


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained adapter and what is known about it."""

    ref: Ref
    trained: Trained
    evidence: AdapterEvidence


@task(name="preflight", **STEP)
def preflight(attempt: Attempt, base: FetchedBase, rows: Rows) -> PreflightEvidence:
    """Try out the arithmetic of training on a few real rows."""
    train, count = attempt.config.train, attempt.config.gates.preflight.num_rows
    steps = recipe(
        "preflight",
        {"base": base.digest, "rows": rows.digest},
        code=(*CODE, "loragate.engines.preflight"),
        libraries=libraries(train.method),
        settings=section(attempt.config, "train") | {"rows": count},
    )
    request = Preflight(base.base, train, rows.file("train.jsonl"), count)
    target = "loragate.engines.preflight:try_out"
    return attempt.build(steps, PreflightEvidence, lambda _: attempt.call(target, request))[1]


@task(name="train adapter", **STEP)
def train_adapter(attempt: Attempt, base: FetchedBase, rows: Rows, plan: Plan) -> Adapter:
    """Train as planned, or go on from the last checkpoint of a killed attempt; metrics go to MLflow as they come."""
    from loragate.engines.system_metrics import sampled
    from loragate.engines.tracking import live_metrics

    train = attempt.config.train
    steps = recipe(
        "train",
        {"base": base.digest, "rows": rows.digest},
        code=CODE,
        libraries=libraries(train.method),
        settings=section(attempt.config, "train"),
    )

    def make(folder: Path) -> object:
        scratch = attempt.home.store.scratch(steps)
        files = rows.file("train.jsonl"), rows.file("heldout.jsonl")
        planned = train.model_copy(update={"forward_tokens": plan.model.forward_tokens})
        request = TrainAdapter(base.base, planned, *files, str(folder), str(scratch), plan.checkpointing)
        with sampled(attempt):
            return attempt.call("loragate.engines.training:train", request, also=live_metrics(attempt))

    stored, trained = attempt.build(steps, Trained, make)
    attempt.note("curve", "", trained.curve)
    attempt.note("artifact", "adapter", stored.ref)
    evidence = inspect_adapter(attempt, stored.ref)
    return Adapter(stored.ref, trained, evidence)


def inspect_adapter(attempt: Attempt, adapter: Ref) -> AdapterEvidence:
    """Read the adapter back from disk."""
    steps = recipe("adapter", {"adapter": adapter.digest}, code=("loragate.engines.adapters",))
    target = "loragate.engines.adapters:inspect_adapter"
    return attempt.build(steps, AdapterEvidence, lambda _: attempt.call(target, adapter.path))[1]
