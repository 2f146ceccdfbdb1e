"""The evidence of a bundle, read back: settings, gates, what they were given, and sums per row."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from loragate import grounds as judged
from loragate.benchmark import Sat
from loragate.bundle import MANIFEST, parse_canonical, read_small
from loragate.config import Config, RunFile, load
from loragate.errors import ConfigError, VerificationError
from loragate.evidence import SCORES
from loragate.files import DataFiles
from loragate.grounds import Grounds, grounds_file, read_grounds
from loragate.ladder import Rung
from loragate.perplexity import Nll
from loragate.record import read_as
from loragate.refs import reference
from loragate.waivers import WaiverFile

T = TypeVar("T")
Object = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SealedGate:
    """A gate as gates.json has it.

    Attributes:
        inputs: Digests of what lay before it.
        limits: Its section of the run file.
        findings: As JSON has them.
    """

    gate: str
    status: str
    inputs: Mapping[str, str]
    limits: Object
    findings: tuple[dict[str, object], ...]
    waivers: tuple[WaiverFile, ...]


@dataclass(frozen=True, slots=True)
class SealedEvidence:
    """The evidence of a bundle.

    Attributes:
        settings: config.json as it stands.
        grounds: What each gate was given, by its name.
        rungs: Sums over all rows by the rung's name, as the record has them.
        scores: Sums per row, likewise.
        slices: Numbers of the held-out rows of each slice, from 0.
        sat: Both models' scores of each task.
    """

    folder: Path
    manifest: Object
    settings: Object
    config: Config
    environment: Mapping[str, str]
    gates: tuple[SealedGate, ...]
    grounds: Mapping[str, Grounds]
    rungs: Mapping[str, Rung]
    scores: Mapping[str, tuple[Nll, ...]]
    slices: Mapping[str, tuple[int, ...]]
    sat: Mapping[str, Sat]

    def said(self, section: str) -> Mapping[str, str]:
        """A section of the manifest that has digests by name."""
        return read_as(dict[str, str], self.manifest[section])


def read_evidence(folder: Path) -> SealedEvidence:
    """Read the evidence of a bundle that has been verified.

    Raises:
        VerificationError: A file of it is missing or is not what such a file is; its name comes first.
    """
    files = _Files(folder)
    manifest = files.value(MANIFEST, dict[str, object])
    settings = files.value("config.json", dict[str, object])
    gates = files.value("gates.json", tuple[SealedGate, ...])
    record = files.value("record.json", dict[str, object])
    slices = files.value(judged.SLICES, dict[str, tuple[int, ...]]) if files.has(judged.SLICES) else {}
    rungs = [*files.part("record.json", record, "ladder"), *files.part("record.json", record, "general")]
    return SealedEvidence(
        folder=folder,
        manifest=manifest,
        settings=settings,
        config=files.config("config.json"),
        environment=files.value("environment.json", dict[str, str]),
        gates=gates,
        grounds={each.gate: files.grounds(each.gate) for each in gates},
        rungs={rung.name: rung for rung in rungs},
        scores=dict(files.scores()),
        slices=slices,
        sat=_sat(files),
    )


def sealed_run(folder: Path, where: Path, overrides: Sequence[str] = ()) -> RunFile:
    """The settings in a bundle as a run file in the folder `where`: relative paths in it start there.

    Raises:
        ConfigError: An override is wrong, or is about something else than where base model and data lie.
    """
    for override in overrides:
        if not override.strip().startswith(("base_model.", "data.")):
            raise ConfigError(f"--set {override}: a replay keeps the release's settings; only base_model and data move")
    place = folder / "config.json"
    config = load(place, overrides).config if overrides else _Files(folder).config(place.name)
    return RunFile(where.absolute() / place.name, config)


def require_same(sealed: SealedEvidence, base: Path | None, files: DataFiles) -> None:
    """Hold local files against those that a release was made of.

    Args:
        base: The base model's file or folder; None where it is of a hub.

    Raises:
        VerificationError: One is another.
    """
    recorded = sealed.said("inputs")
    found = {f"data/{name}": digest for name, digest in files.digests().items()}
    if base is not None:
        found["base_model"] = reference(base).digest
    for name, digest in found.items():
        require_input(name, recorded.get(name), digest)


def require_input(name: str, recorded: str | None, found: str | None) -> None:
    """Hold one input of a release against what is there now.

    Raises:
        VerificationError: It is another.
    """
    if recorded != found:
        raise VerificationError(
            f"{name}: changed since the release; its digest is {str(found)[:12]}…, the release was made of "
            f"{str(recorded)[:12]}…; bring the old one back, or say with --data DIR or --set where it lies"
        )


class _Files:
    """Reads a bundle's files; what is wrong is said with the file's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def text(self, name: str) -> str:
        if not self.has(name):
            why = "; releases sealed before replay was there have none, and cannot be judged again"
            raise VerificationError(f"{name}: missing{why if name.startswith(judged.FOLDER) else ''}")
        return read_small(name, self.folder / name)

    def value(self, name: str, kind: type[T]) -> T:
        return self._as(name, kind, parse_canonical(name, self.text(name)))

    def part(self, name: str, record: Object, key: str) -> tuple[Rung, ...]:
        return self._as(name, tuple[Rung, ...], record.get(key))

    def config(self, name: str) -> Config:
        try:
            return Config.model_validate_json(self.text(name))
        except ValidationError as error:
            raise VerificationError(f"{name}: not the settings of a run: {_first(error)}") from None

    def grounds(self, gate: str) -> Grounds:
        name = grounds_file(gate)
        try:
            return read_grounds(gate, parse_canonical(name, self.text(name)))
        except (ValidationError, KeyError) as error:
            raise VerificationError(f"{name}: not what such a gate judges by: {_first(error)}") from None

    def scores(self) -> Iterator[tuple[str, tuple[Nll, ...]]]:
        for path in sorted((self.folder / SCORES).glob("*.jsonl")):
            name = f"{SCORES}/{path.name}"
            if name != judged.TASK_SCORES:
                yield path.stem, tuple(self._row(name, *each) for each in enumerate(self.lines(name), 1))

    def lines(self, name: str) -> Iterator[dict[str, object]]:
        for number, line in enumerate((self.folder / name).read_text(encoding="utf-8").splitlines(), 1):
            where = f"{name}:{number}"
            yield self._as(where, dict[str, object], parse_canonical(where, line))

    def _row(self, name: str, number: int, line: Object) -> Nll:
        if line.get("row") != number:
            raise VerificationError(f"{name}:{number}: is of row {line.get('row')}; rows stand in order, from 1")
        return self._as(f"{name}:{number}", Nll, {"nats": line.get("nats"), "tokens": line.get("tokens")})

    @staticmethod
    def _as(name: str, kind: type[T], value: object) -> T:
        try:
            return read_as(kind, value)
        except ValidationError as error:
            raise VerificationError(f"{name}: not what such a file holds: {_first(error)}") from None


def _sat(files: _Files) -> dict[str, Sat]:
    """Scores of tasks, those of documents put back from their lines."""
    if not files.has(judged.TASKS):
        return {}
    bare = files.value(judged.TASKS, dict[str, Sat])
    lines = list(files.lines(judged.TASK_SCORES)) if files.has(judged.TASK_SCORES) else []

    def documents(task: str, side: str) -> tuple[float, ...]:
        mine = (line.get(side) for line in lines if line.get("task") == task)
        return read_as(tuple[float, ...], [score for score in mine if score is not None])

    return {
        task: Sat(
            replace(each.base, scores=documents(task, "base")), replace(each.tuned, scores=documents(task, "tuned"))
        )
        for task, each in bare.items()
    }


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault: Mapping[str, object] = json.loads(error.json(include_url=False, include_input=False))[0]
        place: Sequence[object] = fault["loc"]  # type: ignore[assignment]
        return f"{'.'.join(map(str, place))}: {fault['msg']}"
    return str(error)
