"""Merge the adapter into the base's weights, and compare the result with both."""

from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows, recipe, section
from loragate.refs import Ref
from loragate.work import CompareMerged, MergeAdapter, MergeEvidence
from tasks.models import adapted
from tasks.policies import STEP
from tasks.train_adapter import Adapter

COMPARED_ROWS = 32
"""Held-out rows over which predictions are compared position by position."""

CODE = ("loragate.engines.merging", "loragate.engines.language_model")
LIBRARIES = ("torch", "transformers", "peft")


@task(name="merge adapter", **STEP)
def merge_adapter(attempt: Attempt, base: FetchedBase, adapter: Adapter) -> Ref:
    """Return the merged model's folder."""
    settings = section(attempt.config, "train")
    inputs = {"base": base.digest, "adapter": adapter.ref.digest}
    steps = recipe("merge", inputs, code=CODE, libraries=LIBRARIES, settings=settings)

    def make(folder: Path) -> object:
        request = MergeAdapter(adapted(attempt, base, adapter.ref.path), str(folder))
        return attempt.call("loragate.engines.merging:merge", request)

    stored, _ = attempt.build(steps, dict[str, str], make)
    attempt.note("artifact", "merged", stored.ref)
    return stored.ref


@task(name="compare merged", **STEP)
def compare_merged(attempt: Attempt, base: FetchedBase, adapter: Adapter, merged: Ref, rows: Rows) -> MergeEvidence:
    """Hold the merged weights on disk against base + adapter and against the base."""
    model = adapted(attempt, base, adapter.ref.path)
    inputs = {
        "base": base.digest,
        "adapter": adapter.ref.digest,
        "merged": merged.digest,
        "rows": rows.digest,
    }
    settings = section(attempt.config, "train") | {"rows": COMPARED_ROWS}
    steps = recipe("compare", inputs, code=CODE, libraries=LIBRARIES, settings=settings)
    request = CompareMerged(model, merged.path, rows.file("heldout.jsonl"), COMPARED_ROWS)
    target = "loragate.engines.merging:compare"
    return attempt.build(steps, MergeEvidence, lambda _: attempt.call(target, request))[1]
