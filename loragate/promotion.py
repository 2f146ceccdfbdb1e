"""Promotion as values: what is written about one, how far it came, what has to happen next and who is champion.

A promotion is lines of a model's log, each forced to disk before the next thing happens:

    prepared    what is to be done, which champion it replaces, and the digest of every file
    uploaded    MLflow has the files; they were read back and have those digests
    registered  they are a version
    nominated   the version has the alias `candidate`
    flipped     it has the alias `champion`, and its forerunner `previous`; or `lost`: another one is champion
    sealed      all is done: the attempt's journal is closed, the other aliases follow, the chain of events has it; or
                nothing can be done, and why

`step` says what the next thing is, from the lines alone. Each step may be taken twice, so that whoever was killed
between a step and its line, or in the middle of a step, is finished by taking the step again.

Law: no alias is given to a version unless its files, as MLflow hands them out, were read back and have the digests that
the gates judged. That is what "verified" means here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from pydantic import JsonValue as Json

from loragate.record import read_as

Kind = Literal["release", "promotion", "rollback"]
Happened = Literal["prepared", "uploaded", "registered", "nominated", "flipped", "lost", "sealed", "moved"]
Step = Literal["upload", "register", "nominate", "flip", "seal", "none"]
Goal = Literal["champion", "candidate"]
Outcome = Literal["champion", "candidate", "lost", "undone"]

CANDIDATE: Final = "candidate"
CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
CHALLENGER: Final = "challenger"
ALIASES: Final = (CANDIDATE, CHALLENGER, CHAMPION, PREVIOUS)
VERSION_FOLDER: Final = "model"
"""Folder of an MLflow run's artifacts that is the version: a copy of the bundle, so that a download can be verified."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a promotion sets out to do.

    Attributes:
        id: Unique in the log.
        kind: A release's own, on its way into the registry; one that was asked for later; or back to the one before.
        attempt: The attempt that made the release.
        digest: Of the release.
        store: Where MLflow is; empty for the store that is embedded in the home.
        expected: Version that is to be replaced as champion; empty where there is none.
        named: Whether a person has named that version, and means it whatever the log says.
        files: SHA-256 of every file of the version, by POSIX path.
        tags: More tags for the version.
        version: The version, where it is registered already; else empty.
    """

    id: str
    kind: Kind
    model: str
    attempt: str
    digest: str
    store: str
    goal: Goal
    expected: str
    files: dict[str, str]
    named: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log: what happened, when, to which promotion."""

    at: str
    id: str
    happened: Happened
    value: Json


@dataclass(frozen=True, slots=True)
class Ended:
    """What a promotion has come to, and why where it was lost or undone."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """How far a promotion came.

    Attributes:
        run_id: MLflow run that the files were uploaded to; empty before that.
        version: Empty before it is registered.
        lost: Why it does not become champion; empty where nothing is known against it.
        outcome: None before it is sealed.
        reason: Why it was undone.
    """

    intent: Intent
    run_id: str = ""
    version: str = ""
    nominated: bool = False
    flipped: bool = False
    lost: str = ""
    outcome: Outcome | None = None
    reason: str = ""

    @property
    def step(self) -> Step:
        """What has to happen next."""
        if self.outcome is not None:
            return "none"
        if not self.version:
            return "register" if self.run_id else "upload"
        if self.intent.kind == "release" and not self.nominated:
            return "nominate"
        if self.intent.goal == CHAMPION and not self.flipped and not self.lost:
            return "flip"
        return "seal"

    @property
    def reached(self) -> Outcome:
        """What it has come to when nothing but the seal is left."""
        if self.flipped:
            return "champion"
        return "lost" if self.lost else "candidate"

    @property
    def name(self) -> str:
        """Of the release, as far as it has one."""
        return f"{self.intent.model}@{self.version}" if self.version else f"attempt {self.intent.attempt}"


def grown(promotion: Promotion, happened: Happened, value: Json) -> Promotion:
    """Add a line to a promotion."""
    changed = promotion
    match happened:
        case "uploaded":
            changed = replace(promotion, run_id=str(value))
        case "registered":
            changed = replace(promotion, version=str(value))
        case "nominated":
            changed = replace(promotion, nominated=True)
        case "flipped":
            changed = replace(promotion, flipped=True)
        case "lost":
            changed = replace(promotion, lost=str(value))
        case "sealed":
            ended = read_as(Ended, value)
            changed = replace(promotion, outcome=ended.outcome, reason=ended.reason)
    return changed


def begun(intent: Intent) -> Promotion:
    """A promotion of which nothing but its intent is written."""
    return Promotion(intent, version=intent.version)


def promotions(lines: Sequence[Line]) -> tuple[Promotion, ...]:
    """Every promotion of a log, in the order in which they were prepared."""
    found: dict[str, Promotion] = {}
    for line in lines:
        if line.happened == "prepared":
            found[line.id] = begun(read_as(Intent, line.value))
        elif line.id in found:
            found[line.id] = grown(found[line.id], line.happened, line.value)
    return tuple(found.values())


def unfinished(lines: Sequence[Line]) -> tuple[Promotion, ...]:
    """Promotions that something is left to do for."""
    return tuple(each for each in promotions(lines) if each.step != "none")


def lineage(lines: Sequence[Line], store: str, before: Sequence[str] = ()) -> tuple[str, ...]:
    """Versions that led to today's champion, which is the last one; none where there is no champion.

    A rollback takes the champion and all above its forerunner out, so that a second one goes one further back and
    never returns to what was rolled back.

    Args:
        before: The same from before there was a log.
    """
    known, line_of = {each.intent.id: each for each in promotions(lines)}, list(before)
    for line in lines:
        if line.happened != "flipped" or known[line.id].intent.store != store:
            continue
        one = known[line.id]
        if one.intent.kind == "rollback" and one.version in line_of:
            del line_of[len(line_of) - line_of[::-1].index(one.version) :]
        elif not line_of or line_of[-1] != one.version:
            line_of += [one.intent.expected] if not line_of and one.intent.expected else []
            line_of.append(one.version)
    return tuple(line_of)


def standing(lines: Sequence[Line], store: str, before: Sequence[str] = ()) -> dict[str, str]:
    """Which version has which alias, by the log: the candidate is challenger, too, while it is not the champion."""
    found: dict[str, str] = {}
    for each in promotions(lines):
        if each.nominated and each.intent.store == store:
            found[CANDIDATE] = each.version
    versions = lineage(lines, store, before)
    found |= {CHAMPION: versions[-1]} if versions else {}
    found |= {PREVIOUS: versions[-2]} if len(versions) > 1 else {}
    if CANDIDATE in found and found[CANDIDATE] != found.get(CHAMPION):
        found[CHALLENGER] = found[CANDIDATE]
    return found


def why_lost(promotion: Promotion, found: str, champions: Sequence[str]) -> str:
    """Compare: say why a version must not become champion now; empty where it may, or is it already.

    Args:
        found: Version that is champion in MLflow now, or empty.
        champions: The lineage.
    """
    intent, top = promotion.intent, champions[-1] if champions else ""
    model = intent.model
    if found == promotion.version:
        return ""
    if intent.named:
        return (
            "" if found == intent.expected else f"{_was(model, found)} is champion now, not {intent.expected or 'none'}"
        )
    if top and found != top:
        return moved(model, CHAMPION, found, top)
    if found == intent.expected or not (top or intent.expected):
        return ""
    over = (
        f"was judged against {_was(model, intent.expected)}"
        if intent.kind == "release"
        else (f"was to replace {_was(model, intent.expected)}")
    )
    return (
        f"{promotion.name} {over}, but {_was(model, found)} is champion now; release its run file again, which judges "
        f"it anew, or: loragate promote {promotion.name} --expect {found or 'none'}"
    )


def moved(model: str, alias: str, found: str, known: str) -> str:
    """Say that an alias is not where the log put it."""
    back = f"; to put it back: loragate promote {model}@{known} --expect {found or 'none'}"
    return (
        f"the alias {alias} of {model} was moved outside of loragate: MLflow has {_was(model, found)}, the log "
        f"{_was(model, known)}{back if alias == CHAMPION else ''}"
    )


def _was(model: str, version: str) -> str:
    return f"{model}@{version}" if version else "none"
