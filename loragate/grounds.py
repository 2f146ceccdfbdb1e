"""What a gate judges by: the values that its check is given beside the run file's limits, one class a gate.

They go on record before the gate judges and into the bundle of a release, so that whoever has that can have the same
checks judge the same values again. What lies on this machine only (paths) is left out of them; so are sums per row,
which the bundle has once, in `scores`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from pydantic import JsonValue as Json

from loragate.answered import Answered
from loragate.artifact_work import GgufEvidence, MergeEvidence
from loragate.benchmark import Sat
from loragate.challenge import Challenge
from loragate.comparison import Comparison
from loragate.ladder import Divergence, Hop
from loragate.plan import Plan
from loragate.record import Merge, read_as
from loragate.refs import canonical
from loragate.row_work import CheckedFacts
from loragate.work import AdapterEvidence, Base, PreflightEvidence, Trained

FOLDER = "judged"
SLICES, TASKS = f"{FOLDER}/slices.json", f"{FOLDER}/tasks.json"
TASK_SCORES = "scores/tasks.jsonl"


@dataclass(frozen=True, slots=True)
class CardGrounds:
    """Of the card gate: what is stated, by the card's items."""

    gate: ClassVar[str] = "card"
    stated: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataGrounds:
    """Of the data gate: what Great Expectations counted."""

    gate: ClassVar[str] = "data"
    checked: CheckedFacts


@dataclass(frozen=True, slots=True)
class PlanGrounds:
    """Of the plan gate."""

    gate: ClassVar[str] = "plan"
    planned: Plan


@dataclass(frozen=True, slots=True)
class PreflightGrounds:
    """Of the preflight gate."""

    gate: ClassVar[str] = "preflight"
    evidence: PreflightEvidence


@dataclass(frozen=True, slots=True)
class TrainingGrounds:
    """Of the training gate: the curve, and the adapter as it was read back from disk."""

    gate: ClassVar[str] = "training"
    trained: Trained
    adapter: AdapterEvidence


@dataclass(frozen=True, slots=True)
class QualityGrounds:
    """Of the quality gate; of the curve only the steps at which the held-out loss was measured."""

    gate: ClassVar[str] = "quality"
    compared: Comparison
    general: Comparison
    answered: Answered
    trained: Trained
    challenge: Challenge


@dataclass(frozen=True, slots=True)
class MergeGrounds:
    """Of the merge gate."""

    gate: ClassVar[str] = "merge"
    evidence: MergeEvidence
    hop: Hop
    from_base: Divergence
    merged: Merge


@dataclass(frozen=True, slots=True)
class GgufGrounds:
    """Of the gate of one GGUF file, named by its quantisation; without the file's sums per row."""

    name: str
    evidence: GgufEvidence
    hop: Hop
    base: Base

    @property
    def gate(self) -> str:
        """Name of the gate."""
        return f"gguf_{self.name}"


Grounds = (
    CardGrounds
    | DataGrounds
    | PlanGrounds
    | PreflightGrounds
    | TrainingGrounds
    | QualityGrounds
    | MergeGrounds
    | GgufGrounds
)
KINDS: Mapping[str, type[Grounds]] = {
    "card": CardGrounds,
    "data": DataGrounds,
    "plan": PlanGrounds,
    "preflight": PreflightGrounds,
    "training": TrainingGrounds,
    "quality": QualityGrounds,
    "merge": MergeGrounds,
    "gguf": GgufGrounds,
}
"""Class of a gate's grounds by the gate's name, that of a GGUF gate without its quantisation."""


def measured_steps(trained: Trained) -> Trained:
    """A training with those steps of its curve at which the held-out loss was measured: all that quality asks of it."""
    return replace(trained, curve=tuple(point for point in trained.curve if point.heldout_loss is not None))


def of_file(name: str, evidence: GgufEvidence, hop: Hop, base: Base) -> GgufGrounds:
    """The grounds of a GGUF file's gate, without this machine's path and without sums per row."""
    return GgufGrounds(name, replace(evidence, rows=()), hop, replace(base, path=""))


def grounds_file(gate: str) -> str:
    """Name of the file that has a gate's grounds in a bundle."""
    return f"{FOLDER}/{gate}.json"


def read_grounds(gate: str, value: object) -> Grounds:
    """Read the grounds of a gate back.

    Raises:
        ValidationError: They are not those of such a gate.
    """
    return read_as(KINDS[gate.partition("_")[0]], value)


def grounds_files(events: Iterable[tuple[str, str, Json]]) -> dict[str, bytes]:
    """The files of a bundle about what the gates were given, by name, from a journal's events.

    Scores of a task's documents are lines of one file: a task's name may be one that no file can have.
    """
    found: dict[str, bytes] = {}
    sat: dict[str, Sat] = {}
    for event, name, value in events:
        if event == "grounds":
            found[grounds_file(name)] = canonical(value)
        elif event == "slices" and value:
            found[SLICES] = canonical(value)
        elif event == "sat":
            sat[name] = read_as(Sat, value)
    if sat:
        bare = {name: Sat(replace(each.base, scores=()), replace(each.tuned, scores=())) for name, each in sat.items()}
        found[TASKS] = canonical({name: asdict(each) for name, each in bare.items()})
        found[TASK_SCORES] = b"".join(_score_lines(name, each) for name, each in sat.items())
    return found


def _score_lines(task: str, sat: Sat) -> bytes:
    """A line for each document whose score the metric is a mean of; a document that one model lacks is null there."""
    documents = max(len(sat.base.scores), len(sat.tuned.scores))
    lines = (
        {"task": task, "document": at + 1, **{side: _at(getattr(sat, side).scores, at) for side in ("base", "tuned")}}
        for at in range(documents)
    )
    return b"".join(canonical(line) + b"\n" for line in lines)


def _at(scores: tuple[float, ...], at: int) -> float | None:
    return scores[at] if at < len(scores) else None
