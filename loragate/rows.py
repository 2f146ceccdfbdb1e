"""Rows as conversations: whatever a file says, in one canonical form with its place of origin.

A reader turns one raw object into messages; a format is one entry of `FORMATS`, so that further formats slot in.
A row that cannot be read keeps its place and the reason: no row is ever lost silently.
"""

import csv
import glob
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loragate.config import RunFile
from loragate.errors import DataFileError
from loragate.refs import digest_json

Raw = Mapping[str, object]
TableReader = Callable[[Path], Iterator[Raw]]
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: a role (system, user, assistant, tool) and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation to learn from or to judge by.

    Attributes:
        file: Name of its file, for messages to the user.
        number: Line of a .jsonl or .csv file, element of a .json or .parquet file; counted from 1.
        messages: The turns in order; empty where the row could not be read.
        problem: Why the row could not be read, None where it could.
    """

    file: str
    number: int
    messages: tuple[Message, ...]
    problem: str | None = None

    @property
    def place(self) -> str:
        """Where the row stands, as file:row."""
        return f"{self.file}:{self.number}"

    @property
    def digest(self) -> str:
        """Digest of the whole conversation: equal for exact copies."""
        return digest_json([[m.role, m.content] for m in self.messages])

    @property
    def question_digest(self) -> str:
        """Digest of what comes before the last answer; copies of a question share it whatever the answer."""
        last = self.messages[-1:] if self.messages and self.messages[-1].role == "assistant" else ()
        asked = self.messages[: len(self.messages) - len(last)]
        return digest_json([[m.role, m.content] for m in asked])


class RowError(ValueError):
    """A raw row does not follow its format; the message says how."""


def _text(raw: Raw, key: str) -> str:
    if raw.get(key) is None:
        found = "is null" if key in raw else "is missing"
        raise RowError(f'"{key}" {found}; it must be a text')
    value = raw[key]
    if not isinstance(value, str):
        raise RowError(f'"{key}" is {type(value).__name__}, must be a text')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f'"{key}" has half a surrogate pair at character {error.start + 1}, not a letter') from None
    return value


def _alpaca(raw: Raw) -> tuple[Message, ...]:
    instruction, context = _text(raw, "instruction"), _text(raw, "input") if raw.get("input") else ""
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    return (Message("user", question), Message("assistant", _text(raw, "output")))


def _prompt_completion(raw: Raw) -> tuple[Message, ...]:
    return (Message("user", _text(raw, "prompt")), Message("assistant", _text(raw, "completion")))


def _messages(raw: Raw) -> tuple[Message, ...]:
    turns = raw.get("messages")
    if isinstance(turns, str):
        turns = _parse_turns(turns)
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise RowError('"messages" must be a list with at least one message')
    return tuple(_message(turn, position) for position, turn in enumerate(turns, start=1))


def _parse_turns(text: str) -> object:
    """Read messages that a .csv cell holds as JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f'"messages" is a text that is not JSON: {error.msg}') from None


def _message(turn: object, position: int) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"message {position} is {type(turn).__name__}, must have role and content")
    try:
        return Message(_text(turn, "role"), _text(turn, "content"))
    except RowError as problem:
        raise RowError(f"message {position}: {problem}") from None


@dataclass(frozen=True, slots=True)
class Format:
    """How raw rows of one kind are recognised and read."""

    keys: frozenset[str]
    read: Callable[[Raw], tuple[Message, ...]]


FORMATS: dict[str, Format] = {
    "messages": Format(frozenset({"messages"}), _messages),
    "alpaca": Format(frozenset({"instruction"}), _alpaca),
    "prompt_completion": Format(frozenset({"prompt"}), _prompt_completion),
}


def detect(raw: Raw, place: str) -> str:
    """Name the format that a raw row's keys belong to.

    Raises:
        DataFileError: They belong to none.
    """
    for name, known in FORMATS.items():
        if known.keys <= raw.keys():
            return name
    raise DataFileError(
        f"{place}: cannot tell the format from the keys {sorted(map(str, raw))}; known formats start from "
        f"messages, instruction/output (alpaca) or prompt/completion. Rename the keys or set data.format"
    )


def read_file(path: Path, name: str, format_name: str, read_table: TableReader) -> Iterator[Row]:
    """Read a file into rows that carry `name`; its first row decides the format where `format_name` is `auto`.

    `read_table` yields the rows of a .parquet file.

    Raises:
        DataFileError: The file is not what its name promises.
    """
    for number, raw in _raw_rows(path, read_table):
        place = f"{path}:{number}"
        if not isinstance(raw, Mapping):
            yield Row(name, number, (), f"the row is {type(raw).__name__}, must be an object with named fields")
            continue
        if format_name == "auto":
            format_name = detect(raw, place)
        try:
            yield Row(name, number, FORMATS[format_name].read(raw))
        except RowError as problem:
            yield Row(name, number, (), f"not a {format_name} row: {problem}")


def _raw_rows(path: Path, read_table: TableReader) -> Iterator[tuple[int, object]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return enumerate(read_table(path), start=1)
    text = _decode(path)
    if suffix == ".json":
        return _json_rows(path, text)
    return _jsonl_rows(path, text) if suffix == ".jsonl" else _csv_rows(path, text)


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataFileError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    if not isinstance(rows, list):
        raise DataFileError(f"{path}: holds one {type(rows).__name__}; a .json data file is a list of rows")
    return enumerate(rows, start=1)


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFileError(f"{path}:{number}: not JSON: {error.msg} (column {error.colno})") from None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """Yield rows with the line they end in; strict, or a quote left open would swallow the rows after it."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataFileError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from None


def find_files(run: RunFile, key: str, patterns: Sequence[str]) -> tuple[Path, ...]:
    """Return the files that the paths and globs under a key of the run file mean, sorted, each once.

    Raises:
        DataFileError: A pattern matches nothing, or a file of no known kind.
    """
    found: set[Path] = set()
    for pattern in patterns:
        matches = _matches(run, pattern)
        if not matches:
            raise DataFileError(f"{run.path}: {key}: no file matches {pattern} (looked for {run.resolve(pattern)})")
        found.update(match.resolve() for match in matches)
    for path in sorted(found):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise DataFileError(f"{run.path}: {key}: {path}: not a data file; known kinds: {', '.join(SUFFIXES)}")
    return tuple(sorted(found))


def _matches(run: RunFile, pattern: str) -> list[Path]:
    """Match a pattern below the run file's folder; a name that is there is meant as it is, brackets and all."""
    exact = run.resolve(pattern)
    if exact.exists():
        return [exact]
    written = str(Path(pattern).expanduser())
    found = glob.glob(written, root_dir=run.path.parent, recursive=True)  # noqa: PTH207 - may be absolute
    return [run.path.parent / match for match in found]


def short_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name files by their paths below their common folder: short, and the same wherever that folder lies."""
    root = os.path.commonpath([file.parent for file in files])
    return {file: file.relative_to(root).as_posix() for file in files}


def split(rows: Sequence[Row], heldout_share: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Split rows into (train, heldout) by the hash of their question.

    A row's side depends on its question alone: it stays there when rows are added, and copies of one question never
    stand on both sides. A row that could not be read has no question and counts as a training row.
    """
    sides: dict[bool, list[Row]] = {False: [], True: []}
    for row in rows:
        sides[not row.problem and _position(row) < heldout_share].append(row)
    return tuple(sides[False]), tuple(sides[True])


def _position(row: Row) -> float:
    """Place a row's question evenly in [0, 1)."""
    mixed = hashlib.sha256(b"heldout" + bytes.fromhex(row.question_digest)).digest()
    return int.from_bytes(mixed[:8]) / 2**64


def read_canonical(path: Path) -> Iterator[Row]:
    """Read back rows that were written in canonical form, one JSON object a line."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            messages = tuple(Message(role, content) for role, content in fields["messages"])
            yield Row(fields["file"], fields["number"], messages, fields["problem"])
