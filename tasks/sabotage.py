"""Plant known defects into copies of a run, one at a time, and see which gate catches each."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from loragate import planting
from loragate.artifact_work import GgufEvidence
from loragate.attempt import Attempt, FetchedBase, Rows
from loragate.card import emptied
from loragate.config import RunFile, load
from loragate.defects import CATALOGUE, IN_A_MEASUREMENT, RECORD, Defect, Planted, outcome
from loragate.errors import ConfigError, GateRefusedError, NotApplicableError, StepError
from loragate.home import find_home
from loragate.narration import hushed, tell
from loragate.perplexity import Nll
from loragate.record import Closed, now
from loragate.refs import Ref, digest_manifest, manifest
from loragate.sources import BaseModelSource
from loragate.store import MARKER, Recipe, Stored, copy_linked, locked
from loragate.verdicts import Verdict
from loragate.work import Measured, Model, PlantDefect
from tasks.attempts import opened
from tasks.check_rows import check_rows, keep_rows
from tasks.fetch_base import fetch_base
from tasks.prepare_rows import prepare_rows

T = TypeVar("T")
GGUF = "gguf"
RATE = 100.0
"""How many times the run file's learning rate is planted."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What the run that passes every gate stands on."""

    base: FetchedBase
    rows: Rows


class SabotagedAttempt(Attempt):
    """An attempt in which one thing is wrong. It goes the same road, up to the last gate: it can release nothing.

    What it makes is taken out of the run store again; what the sound run has made is found there.
    """

    def __init__(self, parent: Attempt, defect: Defect, sound: Sound, without: Sequence[str]) -> None:
        """Walk for a defect; gates in `without` judge and do not refuse."""
        super().__init__(parent.run, parent.home, "sabotage")
        self.id = f"{parent.id}/{defect.name}"
        self.journal = parent.home.journal(self.id, "sabotage")
        self.defect, self.sound, self.without = defect, sound, frozenset(without)
        self.scratch = self.journal.path.parent / "planted"
        self.made: list[str] = []
        self.adapter: str | None = None
        self.ended: Verdict | None = None
        self.found: Planted | None = None

    def build(self, recipe: Recipe, kind: type[T], make: Callable[[Path], object]) -> tuple[Stored, T]:
        """Find or make a step's outcome; that of the defect's step is altered."""
        stored, value = super().build(recipe, kind, make)
        if not stored.reused:
            self.made.append(stored.ref.path)
        if recipe.step == "train":
            self.adapter = stored.ref.path
        if recipe.step != self.defect.place:
            return stored, value
        if self.defect.name == IN_A_MEASUREMENT:
            value = _without_a_token(value)
        else:
            copy = self.scratch / recipe.step
            copy_linked(stored.ref.path, copy)
            self.plant(copy)
            ref = Ref(str(copy), digest_manifest(manifest(copy, without=frozenset({MARKER}))))
            stored = replace(stored, ref=ref)
        return stored, value

    def stops(self, verdict: Verdict) -> bool:
        """Whether the road ends here; remembers what ended it."""
        if verdict.refuses and verdict.gate.partition("_")[0] not in self.without:
            self.ended = verdict
        return self.ended is not None

    def plant(self, folder: Path) -> None:
        """Have the defect planted into a folder."""
        engine = "gguf_saboteur" if self.defect.place == GGUF else "saboteur"
        model, rows = Model(self.sound.base.base, self.adapter), self.sound.rows.file("train.jsonl")
        request = PlantDefect(self.defect.name, str(folder), model, rows, self.defect.file, self.config.train.seed)
        self.call(f"loragate.engines.{engine}:plant", request, fresh=engine == "gguf_saboteur")

    def alter_run(self) -> None:
        """Plant a defect into what the run file names: rows, base model or learning rate."""
        config = self.config
        limits = config.gates.data.model_copy(update={"on_reject": "refuse"})  # what is dropped is no defect any more
        changed: dict[str, BaseModel] = {"gates": config.gates.model_copy(update={"data": limits})}
        if self.defect.name == "rate-times-hundred":
            changed["train"] = config.train.model_copy(update={"learning_rate": RATE * config.train.learning_rate})
        elif self.defect.name == "card-emptied":
            changed["card"] = emptied(config.card)
        elif self.defect.name in planting.ROWS:
            self.scratch.mkdir(parents=True)
            files = self.sound.rows.file("train.jsonl"), self.sound.rows.file("heldout.jsonl")
            named = planting.alter_rows(self.defect.name, self.scratch, *files, config.train.seed)
            changed["data"] = config.data.model_copy(update=named)
        else:
            self.plant(self.scratch / "base")
            trusted = config.base_model.trust_remote_code
            changed["base_model"] = BaseModelSource(source=str(self.scratch / "base"), trust_remote_code=trusted)
        self.run = RunFile(self.run.path, config.model_copy(update=changed))

    def clear(self) -> None:
        """Take away what only this defect brought about."""
        for path in (*self.made, str(self.scratch)):
            shutil.rmtree(path, ignore_errors=True)


def _without_a_token(value: T) -> T:
    """What a measurement would say, had the first row lost a token."""
    assert isinstance(value, (Measured, GgufEvidence))
    first, *others = value.rows
    return replace(value, rows=(Nll(first.nats, first.tokens - 1), *others))


@contextmanager
def inspected(config: str, home: str | None, overrides: Sequence[str] | None) -> Iterator[Attempt]:
    """Open what defects are planted under, alone for its model in its home; it is no release."""
    run = load(Path(config), overrides or ())
    place = find_home(home, run)
    with locked(place.root / "locks" / run.config.model, f"another release of {run.config.model}"):
        attempt = Attempt(run, place, "sabotage")
        opened(attempt)
        yield attempt
        attempt.note("closed", "", Closed("passed", "every defect was planted", now()))


def sound_run(attempt: Attempt) -> Sound:
    """Find the base model and the rows of the run as it is."""
    base = fetch_base(attempt)
    rows = prepare_rows(attempt, base)
    return Sound(base, keep_rows(attempt, rows, check_rows(attempt, rows)))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The defects to plant: those that a run is walked with, and those of the record of a release."""

    on_the_road: tuple[Defect, ...]
    of_the_record: tuple[Defect, ...]


def chosen(only: Sequence[str] | None) -> Chosen:
    """The defects of these names, in the catalogue's order; all where none is named.

    Raises:
        ConfigError: There is none of a name.
    """
    known = [defect.name for defect in CATALOGUE]
    if unknown := [name for name in only or () if name not in known]:
        raise ConfigError(f"--only {unknown[0]}: no such defect; there are {', '.join(known)}")
    found = [defect for defect in CATALOGUE if not only or defect.name in only]
    record = tuple(defect for defect in found if defect.gate == RECORD)
    return Chosen(tuple(defect for defect in found if defect not in record), record)


@contextmanager
def planted(attempt: Attempt, defect: Defect, sound: Sound, without: Sequence[str]) -> Iterator[SabotagedAttempt]:
    """Plant a defect while the context lasts, and put on record what became of it."""
    sabotaged = SabotagedAttempt(attempt, defect, sound, without)
    started = time.monotonic()
    ending: Exception | None = None
    try:
        with hushed():
            if defect.place == "run":
                sabotaged.alter_run()
            opened(sabotaged)
            yield sabotaged
    except (GateRefusedError, StepError, NotApplicableError) as error:
        ending = error
    finally:
        sabotaged.clear()
    sabotaged.found = _judged(sabotaged, ending, time.monotonic() - started)
    put_on_record(attempt, sabotaged.found)


def put_on_record(attempt: Attempt, found: Planted) -> None:
    """Put on record what became of a defect, and tell it."""
    attempt.note("planted", found.defect, found)
    by = f" by the {found.gate} gate" if found.gate else ""
    tell(f"{found.defect:>22}  {found.status.upper()}{by}: {', '.join(found.rules) or found.said}")


def _judged(sabotaged: SabotagedAttempt, ending: Exception | None, seconds: float) -> Planted:
    """What a refusal, a step that failed, a defect that cannot be planted, or none of these makes of a defect."""
    defect, verdict = sabotaged.defect, sabotaged.ended
    if ending is None:
        return Planted(defect.name, "survived", "", (), "every gate let it pass", seconds)
    if isinstance(ending, NotApplicableError):
        return Planted(defect.name, "not applicable", "", (), str(ending), seconds)
    if verdict is None:  # a step could not even read it
        return Planted(defect.name, "caught", defect.gate, ("readable",), str(ending), seconds)
    rules = tuple(finding.rule for finding in verdict.findings if finding.refuses)
    return Planted(defect.name, outcome(defect, verdict.gate), verdict.gate, rules, str(ending), seconds)
