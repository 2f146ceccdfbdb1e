"""Train the adapter."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows, recipe, section
from loragate.refs import Ref
from loragate.work import AdapterEvidence, TrainAdapter, Trained
from tasks.policies import STEP


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained adapter and what is known about it."""

    ref: Ref
    trained: Trained
    evidence: AdapterEvidence


@task(name="train adapter", **STEP)
def train_adapter(attempt: Attempt, base: FetchedBase, rows: Rows) -> Adapter:
    """Train, or go on from the last checkpoint of a killed attempt; metrics go to MLflow as they come."""
    from loragate.engines.tracking import live_metrics

    train = attempt.config.train
    steps = recipe(
        "train",
        {"base": base.digest, "rows": rows.digest},
        code=(
            "loragate.engines.adapters",
            "loragate.engines.training",
            "loragate.engines.scoring",
            "loragate.engines.language_model",
        ),
        libraries=("torch", "transformers", "peft", *(["bitsandbytes"] if train.method == "qlora" else [])),
        settings=section(attempt.config, "train"),
    )

    def make(folder: Path) -> object:
        scratch = attempt.home.store.scratch(steps)
        request = TrainAdapter(
            base.base, train, rows.file("train.jsonl"), rows.file("heldout.jsonl"), str(folder), str(scratch)
        )
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
