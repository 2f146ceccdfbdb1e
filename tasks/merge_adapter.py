"""Merge the adapter into the base's weights, and compare the result with both."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import task

from checks.merge import choose
from loragate.artifact_work import CompareMerged, MergeAdapter, MergeBoth, MergeEvidence
from loragate.attempt import Attempt, FetchedBase, Rows, recipe, section
from loragate.config import plain
from loragate.record import Merge
from loragate.refs import Ref
from tasks.models import adapted
from tasks.policies import STEP
from tasks.train_adapter import Adapter

COMPARED_ROWS = 32
"""Held-out rows over which the two merges of QLoRA are compared position by position."""

CODE = (
    "loragate.engines.merging",
    "loragate.engines.merge_compare",
    "loragate.engines.streamed_merge",
    "loragate.engines.weight_files",
    "loragate.engines.language_model",
)
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Merged:
    """Merged weights and how they came to be."""

    ref: Ref
    how: Merge


@task(name="merge adapter", **STEP)
def merge_adapter(attempt: Attempt, base: FetchedBase, adapter: Adapter, rows: Rows) -> Merged:
    """Merge; for QLoRA both ways, of which the better one is kept and the numbers of both are on record."""
    model = adapted(attempt, base, adapter.ref.path)
    inputs = {"base": base.digest, "adapter": adapter.ref.digest}
    settings = section(attempt.config, "train")
    if model.quantized:
        inputs["rows"] = rows.digest
        settings |= {"limits": plain(attempt.config.gates.merge), "rows": COMPARED_ROWS}
    steps = recipe("merge", inputs, code=(*CODE, "checks.merge"), libraries=LIBRARIES, settings=settings)

    def make(folder: Path) -> object:
        if not model.quantized:
            return attempt.call("loragate.engines.merging:merge", MergeAdapter(model, str(folder)))
        request = MergeBoth(model, str(folder), rows.file("heldout.jsonl"), COMPARED_ROWS)
        both = _merge(attempt.call("loragate.engines.merging:merge_both", request))
        chosen = choose(both.candidates, both.dtype, attempt.config.gates.merge).name
        _keep(folder, chosen)
        return replace(both, chosen=chosen)

    stored, how = attempt.build(steps, Merge, make)
    attempt.note("merge", "", how)
    attempt.note("artifact", "merged", stored.ref)
    return Merged(stored.ref, how)


def _merge(answer: object) -> Merge:
    assert isinstance(answer, Merge)
    return answer


def _keep(folder: Path, chosen: str) -> None:
    """Leave of the candidates' folders only the content of the chosen one."""
    (folder / chosen).rename(folder / "kept")
    for rest in folder.iterdir():
        if rest.name != "kept":
            shutil.rmtree(rest)
    for path in (folder / "kept").iterdir():
        path.rename(folder / path.name)
    (folder / "kept").rmdir()


@task(name="compare merged", **STEP)
def compare_merged(attempt: Attempt, base: FetchedBase, adapter: Adapter, merged: Merged) -> MergeEvidence:
    """Hold the merged tensors on disk against the base's."""
    model = adapted(attempt, base, adapter.ref.path)
    inputs = {"base": base.digest, "adapter": adapter.ref.digest, "merged": merged.ref.digest}
    steps = recipe("compare", inputs, code=CODE, libraries=LIBRARIES, settings=section(attempt.config, "train"))
    request = CompareMerged(model, merged.ref.path)
    target = "loragate.engines.merging:compare"
    return attempt.build(steps, MergeEvidence, lambda _: attempt.call(target, request))[1]
