"""One attempt at a release: what every step of it needs to do its work, to be found again and to be on record."""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from loragate import child
from loragate.benchmark import Score
from loragate.chain import Chain
from loragate.config import Config, RunFile, plain
from loragate.home import Home, Kind
from loragate.ladder import Divergence, Rung
from loragate.narration import narrated, tell
from loragate.perplexity import Nll, total
from loragate.record import Closed, Event, Opened, as_plain, read_as
from loragate.refs import Ref, canonical, digest_bytes, digest_file
from loragate.store import Recipe, Stored
from loragate.verdicts import Verdict
from loragate.waivers import Review
from loragate.work import Answer, Base

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FetchedBase:
    """The base model on this machine and the digest of what it was made of."""

    base: Base
    digest: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Rendered rows: where they lie and what is in them.

    Attributes:
        folder: Holds train.jsonl, heldout.jsonl, general.jsonl, facts.parquet and probes.jsonl.
    """

    folder: str
    digest: str

    def file(self, name: str) -> str:
        """Path of one of the files."""
        return str(Path(self.folder) / name)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A model measured on the held-out rows.

    Attributes:
        name: Of its rung on the ladder.
        folder: Holds its predictions.
        digest: Of what is in it.
        divergences: As in `loragate.ladder.Rung`.
        scores: On the tasks of gates.quality.tasks, by their names; none for forms that do not sit them.
    """

    name: str
    rows: tuple[Nll, ...]
    answers: tuple[Answer, ...]
    folder: str
    digest: str
    divergences: dict[str, Divergence]
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def ref(self) -> Ref:
        """The finished step that it is kept in."""
        return Ref(self.folder, self.digest)

    @property
    def total(self) -> Nll:
        """Sums over all rows."""
        return total(self.rows)

    def rung(self, above: "Measurement | None" = None) -> Rung:
        """Its rung on the ladder, made from the one above."""
        return Rung(self.name, self.total, above.name if above else "", self.divergences)


class Attempt:
    """A run file on its way along the road.

    Steps go through `build`, which finds what an earlier attempt made of the same inputs, and `call`, which does
    heavy work in a child process. What is found out is appended to the journal at once.
    """

    def __init__(self, run: RunFile, home: Home, kind: Kind = "record") -> None:
        """Begin an attempt; nothing is on record until the first `note`."""
        self.run = run
        self.home = home
        self.kind = kind
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.journal = home.journal(self.id, kind)
        self.chain: Chain | None = None

    @property
    def config(self) -> Config:
        """The run file's content."""
        return self.run.config

    @property
    def tracking_uri(self) -> str:
        """The run file's MLflow server, else MLFLOW_TRACKING_URI, else the store embedded in the home."""
        return self.config.record.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or self.home.tracking_uri

    def note(self, event: Event, name: str, value: object) -> None:
        """Append to the record, and to the chain what is an event of its own."""
        if isinstance(value, Opened):  # first, so that nothing begins on a chain that was altered
            self._chained("attempt", model=value.model, settings=_digest(value.config))
        self.journal.append(event, name, value)
        if isinstance(value, Verdict):
            self._chained("verdict", gate=value.gate, status=value.status, digest=_digest(value))
        elif isinstance(value, Review) and value.honoured:
            self._chained("waiver", gate=name, candidate=value.candidate, waivers=[w.digest for w in value.honoured])
        elif isinstance(value, Closed):
            self._chained("closed", **self._end(value))

    def _chained(self, event: str, **fields: object) -> None:
        if self.chain is not None:
            self.chain.append(event, {"attempt": self.id} | fields)

    def chain_end(self) -> None:
        """Put the end into the chain, where whoever wrote the journal's last line was killed before that."""
        closed = self.journal.read().closed
        assert closed is not None
        if self.chain is not None and not self.chain.has("closed", self._end(closed)):
            self.chain.append("closed", self._end(closed))

    def _end(self, closed: Closed) -> dict[str, object]:
        told = {"outcome": closed.outcome, "version": closed.version, "release": closed.digest}
        return {"attempt": self.id, "journal": digest_file(self.journal.path), **told}

    def note_rung(self, measurement: Measurement, above: Measurement | None = None) -> None:
        """Put a rung of the ladder on record, made from the one above, and where its sums per row are kept."""
        self.note("rung", measurement.name, measurement.rung(above))
        self.note("scores", measurement.name, measurement.ref)

    def settle(self, verdict: Verdict) -> None:
        """Put a verdict on record and tell it."""
        self.note("verdict", verdict.gate, verdict)
        tell(f"{verdict.gate:>12}  {verdict.status.upper()}  ({len(verdict.findings)} rules)")

    def stops(self, verdict: Verdict) -> bool:
        """Whether a verdict ends the road."""
        return verdict.refuses

    def forget(self) -> None:
        """Take this attempt off the record: it found that nothing was left to do."""
        self._chained("forgotten")
        shutil.rmtree(self.journal.path.parent)

    def build(self, recipe: Recipe, kind: type[T], make: Callable[[Path], object]) -> tuple[Stored, T]:
        """Find or make a step's outcome; return it with its value as `kind`, timed and told."""
        started = time.monotonic()
        stored = self.home.store.build(recipe, lambda folder: as_plain(make(folder)))
        seconds = time.monotonic() - started
        self.note("seconds", recipe.step, round(seconds, 2))
        tell(f"{recipe.step:>12}  {'reused' if stored.reused else f'{seconds:.1f} s'}")
        return stored, read_as(kind, stored.value)

    def call(self, target: str, request: object, *, fresh: bool = False, also: child.Report = child.ignore) -> object:
        """Run an engine function in a child process, its progress shown and passed on to `also`."""
        name = target.partition(":")[2]
        with narrated(name) as show:

            def report(progress: child.Progress) -> None:
                show(progress)
                also(progress)

            return child.call(target, request, log=self.home.logs / f"{self.id}.log", report=report, fresh=fresh)


def _digest(value: object) -> str:
    return digest_bytes(canonical(as_plain(value)))


def recipe(
    step: str,
    inputs: Mapping[str, str],
    *,
    code: tuple[str, ...],
    libraries: tuple[str, ...] = (),
    settings: Mapping[str, object] | None = None,
) -> Recipe:
    """Make a recipe; its code includes the values that steps ask and answer with."""
    return Recipe(step, inputs, settings or {}, (*code, "loragate.artifact_work", "loragate.work"), libraries)


def section(config: Config, *names: str) -> dict[str, object]:
    """The named sections of a configuration as plain values, for a recipe's settings."""
    values = plain(config)
    return {name: values[name] for name in names}
