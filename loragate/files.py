"""Data files: which ones a run file means, and the rows in them, each with its place.

A file is of a kind (.json .jsonl .csv .tsv .parquet .arrow), texts as they are or compressed (.gz, .zst). What needs a
library to be read comes in as functions, so that this module needs none.
"""

import csv
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from loragate.config import RunFile
from loragate.errors import DataFileError
from loragate.formats import FORMATS, Raw, RowError, detect, renamed
from loragate.rows import Row, unreadable

TABLES = (".parquet", ".arrow")
KINDS = (".json", ".jsonl", ".csv", ".tsv", *TABLES)
COMPRESSIONS = (".gz", ".zst")
HELDOUT_SPLITS = ("valid", "validation", "test")
"""Splits of a data folder that can be held out; the first that is there is, where the run file says nothing."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Readers that need a library: the rows of a .parquet or .arrow file, and what a .zst file holds."""

    table: Callable[[Path], Iterator[Raw]]
    zstd: Callable[[Path], BinaryIO]


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read.

    Attributes:
        format: Name of the rows' format; `auto`: each file's first row decides.
        columns: Names of the file's columns by the names that formats know.
    """

    foreign: Foreign
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)


class Doubled(dict[str, object]):
    """A JSON object in which a key stands twice, or that holds such an object."""

    key: str


def read_file(path: Path, name: str, reading: Reading) -> Iterator[Row]:
    """Read a file into rows that carry `name`.

    Raises:
        DataFileError: The file is not what its name promises, or its rows change their format midway.
    """
    form = reading.format
    for number, raw in _raw_rows(path, reading.foreign):
        try:
            named = renamed(_object(raw), reading.columns)
        except RowError as problem:
            yield unreadable(name, number, str(problem))
            continue
        if reading.format == "auto":
            form = _require_one_format(named, form, f"{path}:{number}")
        try:
            yield Row(name, number, FORMATS[form].read(named))
        except RowError as problem:
            yield unreadable(name, number, f"not a row of format {form}: {problem}")


def _object(raw: object) -> Raw:
    if isinstance(raw, RowError):
        raise raw
    if isinstance(raw, Doubled):
        raise RowError(f'the key "{raw.key}" stands twice in one object; which one counts is nowhere said')
    if not isinstance(raw, Mapping):
        raise RowError(f"the row is {type(raw).__name__}, must be an object with named fields")
    return cast(Raw, raw)


def _require_one_format(raw: Raw, form: str, place: str) -> str:
    """Return the format of the file up to this row; rows that fit no format at all are told from their own faults."""
    if form == "auto":
        return detect(raw, place)
    other = next((name for name, known in FORMATS.items() if known.fits(raw)), form)
    if other != form and not FORMATS[form].fits(raw):
        raise DataFileError(
            f"{place}: the rows change their format here, from {form} to {other}; put them into files of their own"
        )
    return form


def kind_of(path: Path) -> tuple[str, str]:
    """The kind and the compression in a file's name, in small letters; empty where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def _raw_rows(path: Path, foreign: Foreign) -> Iterator[tuple[int, object]]:
    kind, compression = kind_of(path)
    if kind in TABLES:
        yield from enumerate(foreign.table(path), start=1)
        return
    try:
        with _opened(path, compression, foreign) as stream:
            yield from READERS[kind](path, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{path}: cannot be read: {error}") from None


def _opened(path: Path, compression: str, foreign: Foreign) -> BinaryIO:
    if compression == ".zst":
        return foreign.zstd(path)
    return cast(BinaryIO, gzip.open(path)) if compression else path.open("rb")


def _decoded(path: Path, data: bytes, start: int = 0) -> str:
    """Decode UTF-8; a fault is named by its byte, counted in the (unpacked) file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: not UTF-8 text (byte {start + error.start}); save it as UTF-8") from None


def _without_mark(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf")


def _parse(text: str) -> object:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: It is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise json.JSONDecodeError(str(error).partition(";")[0], text, 0) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        return _doubled(values, next(key for key in keys if keys.count(key) > 1))
    for value in values.values():
        inner = value if isinstance(value, list) else [value]
        twice = next((item for item in inner if isinstance(item, Doubled)), None)
        if twice is not None:
            return _doubled(values, twice.key)
    return values


def _doubled(values: dict[str, object], key: str) -> Doubled:
    found = Doubled(values)
    found.key = key
    return found


def _json_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[int, object]]:
    data = stream.read()
    mark = len(data) - len(_without_mark(data))
    try:
        rows = _parse(_decoded(path, data[mark:], mark))
    except json.JSONDecodeError as error:
        raise DataFileError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    if not isinstance(rows, list):
        raise DataFileError(f"{path}: holds one {type(rows).__name__}; a .json data file is a list of rows")
    yield from enumerate(rows, start=1)


def _jsonl_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[int, object]]:
    start = 0
    for number, line in enumerate(stream, start=1):
        text = _decoded(path, line, start)
        text = text.removeprefix("\ufeff") if number == 1 else text
        start += len(line)
        if not text.strip():
            continue
        try:
            yield number, _parse(text.rstrip())
        except json.JSONDecodeError as error:
            raise DataFileError(f"{path}:{number}: not JSON: {error.msg} (column {error.colno})") from None


def _separated_rows(delimiter: str) -> Callable[[Path, BinaryIO], Iterator[tuple[int, object]]]:
    """Read rows with the line they end in; strict, or a quote left open would swallow the rows after it."""

    def read(path: Path, stream: BinaryIO) -> Iterator[tuple[int, object]]:
        data = stream.read()
        mark = len(data) - len(_without_mark(data))
        csv.field_size_limit(sys.maxsize)
        text = io.StringIO(_decoded(path, data[mark:], mark), newline="")
        reader = csv.reader(text, strict=True, delimiter=delimiter)
        row_starts = 1
        try:
            header = next(reader, [])
            row_starts = reader.line_num + 1
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise DataFileError(f'{path}:{reader.line_num}: the column "{twice}" stands twice in the header')
            for cells in reader:
                if cells:
                    yield reader.line_num, _named(header, cells)
                row_starts = reader.line_num + 1
        except csv.Error as error:
            raise DataFileError(f"{path}:{row_starts}: not {kind_of(path)[0][1:].upper()}: {error}") from None

    return read


def _named(header: Sequence[str], cells: Sequence[str]) -> object:
    """Name a line's cells; with cells beyond the header it is a fault."""
    if len(cells) > len(header):
        return RowError(f"the row has {len(cells)} cells, the header {len(header)}")
    return dict(zip(header, cells, strict=False))


READERS: dict[str, Callable[[Path, BinaryIO], Iterator[tuple[int, object]]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _separated_rows(","),
    ".tsv": _separated_rows("\t"),
}


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of a run, sorted, each once.

    Attributes:
        heldout: Files of held-out rows, or the share of the training rows to hold out.
    """

    train: tuple[Path, ...]
    heldout: tuple[Path, ...] | float

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file, training files first."""
        return self.train + (self.heldout if isinstance(self.heldout, tuple) else ())


def data_files(run: RunFile) -> DataFiles:
    """Find what the run file's paths and globs mean.

    A folder means its `train` split, and its held-out split where data.heldout is not set: an mlx-lm folder, one that
    the library datasets has saved, or else every data file in it.

    Raises:
        DataFileError: A pattern matches nothing, or a file of no known kind.
    """
    data = run.config.data
    train = _found(run, "data.train", data.train)
    heldout: tuple[Path, ...] | float
    if isinstance(data.heldout, tuple):
        heldout = _found(run, "data.heldout", data.heldout)
    else:
        heldout = data.heldout
        if "heldout" not in data.model_fields_set:
            folders = [run.resolve(pattern) for pattern in data.train]
            held = {file.resolve() for folder in folders if folder.is_dir() for file in _heldout_split(folder)}
            heldout = tuple(sorted(held)) or data.heldout
    return DataFiles(train, heldout)


def _found(run: RunFile, key: str, patterns: Sequence[str]) -> tuple[Path, ...]:
    found: set[Path] = set()
    for pattern in patterns:
        matches = _matches(run, pattern)
        if not matches:
            raise DataFileError(f"{run.path}: {key}: no file matches {pattern} (looked for {run.resolve(pattern)})")
        found.update(match.resolve() for match in matches)
    for path in sorted(found):
        if kind_of(path)[0] not in KINDS or not path.is_file():
            known = f"{', '.join(KINDS)}, texts also with {' or '.join(COMPRESSIONS)}"
            raise DataFileError(f"{run.path}: {key}: {path}: not a data file; known kinds: {known}")
    return tuple(sorted(found))


def _matches(run: RunFile, pattern: str) -> list[Path]:
    """Match a pattern below the run file's folder; a name that is there is meant as it is, brackets and all."""
    exact = run.resolve(pattern)
    if exact.is_dir():
        return _split_files(exact, "train") or [path for path in exact.iterdir() if kind_of(path)[0] in KINDS]
    if exact.exists():
        return [exact]
    written = str(Path(pattern).expanduser())
    found = glob.glob(written, root_dir=run.path.parent, recursive=True)  # noqa: PTH207 - may be absolute
    return [run.path.parent / match for match in found]


def _heldout_split(folder: Path) -> list[Path]:
    return next((files for split in HELDOUT_SPLITS if (files := _split_files(folder, split))), [])


def _split_files(folder: Path, split: str) -> list[Path]:
    """Files of a split of an mlx-lm folder or of one saved by the library datasets; none where it has no such split."""
    saved = folder / split if (folder / "dataset_dict.json").exists() else folder
    state = saved / "state.json"
    if state.exists() and (saved != folder or split == "train"):
        return [saved / file["filename"] for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    lines = folder / f"{split}.jsonl"
    return [lines] if lines.exists() else []


def short_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name files by their paths below their common folder: short, and the same wherever that folder lies."""
    root = os.path.commonpath([file.parent for file in files])
    return {file: file.relative_to(root).as_posix() for file in files}
