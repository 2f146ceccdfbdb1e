"""The record of one attempt: an append-only journal while it runs, one value when it is read back.

Every step appends what it found as it finds it, so a refused, failed or killed attempt leaves the same evidence
up to the point where it ended. Nothing is ever rewritten.
"""

import functools
import json
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

from pydantic import JsonValue as Json
from pydantic import TypeAdapter

from loragate.approvals import Policy
from loragate.benchmark import Benchmarked, metrics_of
from loragate.card import BaseCard
from loragate.comparison import Comparison
from loragate.defects import Planted
from loragate.errors import VerificationError
from loragate.histogram import Histogram
from loragate.ladder import Rung
from loragate.lines import append_line
from loragate.perplexity import Nll
from loragate.plan import Plan
from loragate.refs import Ref
from loragate.row_sets import RowSet
from loragate.verdicts import Verdict
from loragate.waivers import Review
from loragate.wear import Look
from loragate.worst_rows import WorstRow

T = TypeVar("T")

Outcome = Literal["released", "refused", "failed", "running", "passed"]
EXPECTATIONS: Final = "great_expectations"
"""Artifact of the data gate that is for reading: its pages hold times, so no digest covers it."""
Event = Literal[
    "opened",
    "tracked",
    "input",
    "base_card",
    "row_set",
    "seconds",
    "plan",
    "verdict",
    "rung",
    "comparison",
    "benchmark",
    "look",
    "approvals",
    "champion",
    "incumbent",
    "curve",
    "histogram",
    "fixed",
    "samples",
    "worst_rows",
    "waivers",
    "merge",
    "artifact",
    "scores",
    "grounds",
    "slices",
    "sat",
    "planted",
    "closed",
]


GENERAL = "general_"
"""What the names of rungs on general rows begin with: they are no part of the ladder."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out question answered greedily before and after training."""

    question: str
    reference: str
    before: str
    after: str
    before_stopped: bool
    after_stopped: bool


@dataclass(frozen=True, slots=True)
class MergeCandidate:
    """One way to merge an adapter, held against what was trained on the same held-out positions.

    Attributes:
        name: `dequantised`: into the base as training saw it; `original`: into the base as it is.
        kl: Mean KL(trained || candidate) in nats.
        top1_agreement: Share of positions where both agree on the likeliest token.
    """

    name: str
    kl: float
    top1_agreement: float
    nll: Nll


@dataclass(frozen=True, slots=True)
class Merge:
    """How the merged weights came to be.

    Attributes:
        chosen: Name of the candidate whose weights were kept.
        dtype: Number format of the weights.
        way: `streamed`, or why the whole model was merged in memory.
        candidates: Every candidate that was scored; none where there was one way only.
    """

    chosen: str
    dtype: str
    way: str
    candidates: tuple[MergeCandidate, ...] = ()


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One optimizer step of training.

    Attributes:
        loss: Nats per supervised token of the step's rows.
        grad_norm: Norm of the adapter's gradient before clipping.
        heldout_loss: Nats per token on the held-out rows, None at steps where it was not measured.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    heldout_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a cleaned copy of the data differs in, in rows, and its files."""

    kept: int
    trimmed: int
    duplicates: int
    rejected: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """What an attempt set out to do.

    Attributes:
        attempt: Its id, unique in a home.
        config: The whole run file, defaults filled in.
        environment: Versions of Python, libraries and hardware.
        run_file: Where the run file lay.
    """

    attempt: str
    model: str
    started: str
    config: dict[str, Json]
    environment: dict[str, str]
    run_file: str = ""


@dataclass(frozen=True, slots=True)
class Tracked:
    """Where MLflow has the attempt."""

    run_id: str
    uri: str


@dataclass(frozen=True, slots=True)
class Closed:
    """How an attempt ended.

    Attributes:
        message: The verdict in one paragraph.
        version: Registered model version, None unless released.
        digest: Digest of the release's content, None unless released.
        aliases: Aliases that the version was given.
    """

    outcome: Outcome
    message: str
    finished: str
    version: str | None = None
    digest: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """Everything on record about one attempt, complete or as far as it came.

    Attributes:
        lengths: Tokens of the training rows before truncation; None where none could be rendered.
        taught_shares: Supervised tokens of each training row in percent of its tokens; None likewise.
        ladder: Perplexities on the held-out rows.
        general: Perplexities of base and tuned model on the rows about what must not be forgotten.
        comparisons: Models compared row by row: each rung of the ladder, by its name, with what it was made from;
            `champion` the champion's weights with the tuned ones; `slice/NAME` and `champion/slice/NAME` tuned and
            baseline or champion on one slice of the rows; `general` tuned and baseline on the general rows.
        benchmarks: Base and tuned model on each task of gates.quality.tasks, by its name.
        look: The challenger's look at the held-out rows; None where it came to none.
        base_card: What the base model says about itself; None where nobody looked.
        champion: Release that the challenger was held against; None where there was none.
        incumbent: Version that was champion when the challenger was judged, empty where none was; None where the road
            did not come that far.
        merge: How the adapter was merged; None where it was not.
        planted: What became of the defects that were planted to test the gates; none elsewhere.
        worst_rows: Held-out rows with which the tuned model fares worst against baseline and champion, the worst first.
        scores: Steps of the run store that hold each rung's sums per row, by the rung's name.
        approvals: Who may approve a release of it, and how many have to; None where nobody need.
        waivers: What gates that would have refused made of the waivers they found, by gate.
    """

    opened: Opened
    closed: Closed | None
    tracked: Tracked | None = None
    verdicts: tuple[Verdict, ...] = ()
    ladder: tuple[Rung, ...] = ()
    general: tuple[Rung, ...] = ()
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    benchmarks: dict[str, Benchmarked] = field(default_factory=dict)
    look: Look | None = None
    approvals: Policy | None = None
    champion: str | None = None
    incumbent: str | None = None
    curve: tuple[CurvePoint, ...] = ()
    lengths: Histogram | None = None
    taught_shares: Histogram | None = None
    fixed: Fixed | None = None
    plan: Plan | None = None
    samples: tuple[Sample, ...] = ()
    worst_rows: dict[str, tuple[WorstRow, ...]] = field(default_factory=dict)
    waivers: dict[str, Review] = field(default_factory=dict)
    merge: Merge | None = None
    artifacts: dict[str, Ref] = field(default_factory=dict)
    scores: dict[str, Ref] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    row_sets: dict[str, RowSet] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    planted: tuple[Planted, ...] = ()
    base_card: BaseCard | None = None

    @property
    def outcome(self) -> Outcome:
        """Released, refused, failed, still running (or killed), or passed where only the data was checked."""
        return self.closed.outcome if self.closed else "running"

    @property
    def release(self) -> str | None:
        """Name of the release, `model@version`; None unless released."""
        version = self.closed.version if self.closed else None
        return f"{self.opened.model}@{version}" if version else None

    @property
    def metrics(self) -> dict[str, float]:
        """Perplexities by rung (baseline_ppl, gguf_f16_ppl, general_tuned_ppl), and tasks (task/NAME/tuned)."""
        perplexities = {f"{rung.name}_ppl": rung.nll.perplexity for rung in (*self.ladder, *self.general)}
        return perplexities | metrics_of(self.benchmarks)


class Journal:
    """The append-only file behind one attempt's record."""

    def __init__(self, path: Path) -> None:
        """Use the journal at a path; it need not exist yet."""
        self.path = path

    def append(self, event: Event, name: str, value: object) -> None:
        """Add one line and force it to disk before returning."""
        line = json.dumps({"event": event, "name": name, "value": as_plain(value)})
        append_line(self.path, line)

    def events(self) -> Iterator[tuple[str, str, Json]]:
        """Yield (event, name, value); a last line cut short by a kill is left out."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                return
            yield entry["event"], entry["name"], entry["value"]

    def read(self) -> AttemptRecord:
        """Read the record back; a later value of the same event and name replaces the earlier one.

        Raises:
            VerificationError: Not even the opening line is there: it was killed while writing that.
        """
        seen: dict[str, dict[str, Json]] = {}
        for event, name, value in self.events():
            seen.setdefault(event, {})[name] = value
        if "opened" not in seen:
            raise VerificationError(f"{self.path}: holds no opening line; the attempt ended before it began")
        rungs = [read_as(Rung, v) for v in seen.get("rung", {}).values()]
        closed, shapes = seen.get("closed", {}).get(""), seen.get("histogram", {})
        return AttemptRecord(
            opened=read_as(Opened, seen["opened"][""]),
            closed=read_as(Closed, closed) if closed else None,
            tracked=read_as(Tracked, seen["tracked"][""]) if "tracked" in seen else None,
            verdicts=tuple(read_as(Verdict, v) for v in seen.get("verdict", {}).values()),
            ladder=tuple(rung for rung in rungs if not rung.name.startswith(GENERAL)),
            general=tuple(rung for rung in rungs if rung.name.startswith(GENERAL)),
            comparisons={name: read_as(Comparison, v) for name, v in seen.get("comparison", {}).items()},
            benchmarks={name: read_as(Benchmarked, v) for name, v in seen.get("benchmark", {}).items()},
            look=read_as(Look, seen["look"]["heldout"]) if "look" in seen else None,
            approvals=read_as(Policy, seen["approvals"][""]) if "approvals" in seen else None,
            champion=read_as(str, seen["champion"][""]) if "" in seen.get("champion", {}) else None,
            incumbent=read_as(str, seen["incumbent"][""]) if "incumbent" in seen else None,
            curve=read_as(tuple[CurvePoint, ...], seen.get("curve", {}).get("", [])),
            lengths=read_as(Histogram, shapes["tokens"]) if "tokens" in shapes else None,
            taught_shares=read_as(Histogram, shapes["taught"]) if "taught" in shapes else None,
            fixed=read_as(Fixed, seen["fixed"][""]) if "fixed" in seen else None,
            plan=read_as(Plan, seen["plan"][""]) if "plan" in seen else None,
            samples=read_as(tuple[Sample, ...], seen.get("samples", {}).get("", [])),
            worst_rows={side: read_as(tuple[WorstRow, ...], v) for side, v in seen.get("worst_rows", {}).items()},
            waivers={gate: read_as(Review, v) for gate, v in seen.get("waivers", {}).items()},
            merge=read_as(Merge, seen["merge"][""]) if "merge" in seen else None,
            artifacts={name: read_as(Ref, v) for name, v in seen.get("artifact", {}).items()},
            scores={name: read_as(Ref, v) for name, v in seen.get("scores", {}).items()},
            inputs={name: read_as(str, v) for name, v in seen.get("input", {}).items()},
            row_sets={name: read_as(RowSet, v) for name, v in seen.get("row_set", {}).items()},
            seconds={name: read_as(float, v) for name, v in seen.get("seconds", {}).items()},
            base_card=read_as(BaseCard, seen["base_card"][""]) if "base_card" in seen else None,
            planted=tuple(read_as(Planted, v) for v in seen.get("planted", {}).values()),
        )


def as_plain(value: object) -> object:
    """A value as JSON has it, NaN and infinities kept: dataclasses as objects, tuples as lists."""
    if isinstance(value, tuple):
        return [as_plain(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


@functools.cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    """Making one takes longer than using it, so each is made once."""
    return TypeAdapter(kind)


def read_as(kind: type[T], value: object) -> T:
    """Read a value back that was written as `as_plain` has it.

    Raises:
        ValidationError: It is none of that kind.
    """
    found: T = _reader(cast("Hashable", kind)).validate_python(value)
    return found


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
