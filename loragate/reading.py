"""The rows in a data file, each with its place, read a part at a time.

A file is of a kind (.json .jsonl .csv .tsv .parquet .arrow), texts as they are or compressed (.gz, .zst). Reading is in
two halves: `shards` finds where rows begin and end, and `read_shard` turns some of them into conversations; the second
is the costly one and may happen in another process. What needs a library to be read comes in as functions, so that this
module needs none. Memory holds a shard, never a file.
"""

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from loragate.errors import DataFileError
from loragate.formats import FORMATS, Raw, RowError, detect, renamed, slice_of
from loragate.rows import Row, unreadable
from loragate.streamed_json import Doubled, elements, parse

TABLES = (".parquet", ".arrow")
KINDS = (".json", ".jsonl", ".csv", ".tsv", *TABLES)
COMPRESSIONS = (".gz", ".zst")
MARK = codecs.BOM_UTF8
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Foreign:
    """Readers that need a library: the rows of a .parquet or .arrow file, and what a .zst file holds."""

    table: Callable[[Path], Iterator[Raw]]
    zstd: Callable[[Path], BinaryIO]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read.

    Attributes:
        format: Name of the rows' format; `auto`: the file's first row decides.
        columns: Names of the file's columns by the names that formats know.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)


class RawRow(NamedTuple):
    """A row as it lies in its file.

    Attributes:
        number: Line of a .jsonl, .csv or .tsv file, element of a .json or .parquet file; counted from 1.
        start: Byte at which a line of a .jsonl file starts, 0 in other files.
        content: A line of a .jsonl file as bytes, else the row's value.
    """

    number: int
    start: int
    content: object


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of one file that follow each other.

    Attributes:
        name: What the rows' places call the file.
        form: Format of the file's rows; `auto` where none of them has one.
        told: Whether the run file says the format, so that rows of another are faults of their own.
    """

    path: Path
    name: str
    form: str
    told: bool
    columns: Mapping[str, str]
    raws: Sequence[RawRow]


def shards(path: Path, name: str, reading: Reading, foreign: Foreign, rows: int) -> Iterator[Shard]:
    """Cut a file into shards of `rows` rows, the last one shorter.

    Raises:
        DataFileError: The file is not what its name promises, or its rows are of no known format.
    """
    raws = _raw_rows(path, foreign)
    seen: list[RawRow] = []
    form = reading.format if reading.format != "auto" else _first_format(path, raws, reading, seen)
    raws = chain(seen, raws)
    while part := list(islice(raws, rows)):
        yield Shard(path, name, form, reading.format != "auto", reading.columns, part)


def read_shard(shard: Shard) -> Iterator[Row]:
    """Turn the rows of a shard into conversations, or say of each why it is none.

    Raises:
        DataFileError: A line is not JSON, or the rows change their format.
    """
    for raw in shard.raws:
        try:
            named = renamed(_object(raw_value(shard.path, raw)), shard.columns)
            if not shard.told:
                _require_format(named, shard.form, f"{shard.path}:{raw.number}")
        except RowError as problem:
            yield unreadable(shard.name, raw.number, str(problem))
            continue
        try:
            yield Row(shard.name, raw.number, FORMATS[shard.form].read(named), slice_name=slice_of(named))
        except RowError as problem:
            yield unreadable(shard.name, raw.number, f"not a row of format {shard.form}: {problem}")


def _first_format(path: Path, raws: Iterator[RawRow], reading: Reading, seen: list[RawRow]) -> str:
    """Name the format of the first row that has one; the rows looked at are added to `seen`."""
    for raw in raws:
        seen.append(raw)
        try:
            named = renamed(_object(raw_value(path, raw)), reading.columns)
        except RowError:
            continue
        return detect(named, f"{path}:{raw.number}")
    return "auto"


def _object(raw: object) -> Raw:
    if isinstance(raw, RowError):
        raise raw
    if isinstance(raw, Doubled):
        raise RowError(f'the key "{raw.key}" stands twice in one object; which one counts is nowhere said')
    if not isinstance(raw, Mapping):
        raise RowError(f"the row is {type(raw).__name__}, must be an object with named fields")
    return cast(Raw, raw)


def _require_format(raw: Raw, form: str, place: str) -> None:
    """Refuse a row of another format; one that cannot be read in any has a fault of its own."""
    other = next((name for name, known in FORMATS.items() if known.fits(raw)), form)
    if other != form and not FORMATS[form].fits(raw) and _readable(raw, other):
        raise DataFileError(
            f"{place}: the rows change their format here, from {form} to {other}; put them into files of their own"
        )


def _readable(raw: Raw, form: str) -> bool:
    try:
        FORMATS[form].read(raw)
    except RowError:
        return False
    return True


def kind_of(path: Path) -> tuple[str, str]:
    """The kind and the compression in a file's name, in small letters; empty where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def _raw_rows(path: Path, foreign: Foreign) -> Iterator[RawRow]:
    kind, compression = kind_of(path)
    if kind in TABLES:
        yield from (RawRow(number, 0, row) for number, row in enumerate(foreign.table(path), start=1))
        return
    try:
        with _opened(path, compression, foreign) as stream:
            yield from READERS[kind](path, stream)
    except UnicodeDecodeError:
        with _opened(path, compression, foreign) as stream:
            raise DataFileError(_not_text(path, _fault(stream))) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{path}: cannot be read: {error}") from None


def _opened(path: Path, compression: str, foreign: Foreign) -> BinaryIO:
    if compression == ".zst":
        return foreign.zstd(path)
    return cast(BinaryIO, gzip.open(path)) if compression else path.open("rb")


def _not_text(path: Path, byte: int) -> str:
    return f"{path}: not UTF-8 text (byte {byte}); save it as UTF-8"


def _fault(stream: BinaryIO) -> int:
    """Position of the first byte that is not UTF-8, counted in the (unpacked) file."""
    passed, rest = 0, b""
    while block := stream.read(BLOCK_BYTES):
        rest += block
        try:
            used = codecs.utf_8_decode(rest, "strict", False)[1]
        except UnicodeDecodeError as error:
            return passed + error.start
        passed, rest = passed + used, rest[used:]
    return passed


def raw_value(path: Path, raw: RawRow) -> object:
    """Parse a line of a .jsonl file; other rows are values already."""
    if not isinstance(raw.content, bytes):
        return raw.content
    try:
        text = raw.content.decode("utf-8")
        return parse((text.removeprefix("\ufeff") if raw.number == 1 else text).rstrip())
    except UnicodeDecodeError as error:
        raise DataFileError(_not_text(path, raw.start + error.start)) from None
    except json.JSONDecodeError as error:
        raise DataFileError(f"{path}:{raw.number}: not JSON: {error.msg} (column {error.colno})") from None


def _jsonl_rows(path: Path, stream: BinaryIO) -> Iterator[RawRow]:  # noqa: ARG001 - as the other readers
    start = 0
    for number, line in enumerate(stream, start=1):
        if line.strip() and (number > 1 or line.strip() != MARK):
            yield RawRow(number, start, line)
        start += len(line)


def _json_rows(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """Read the elements of a list as they come."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        try:
            yield from (RawRow(number, 0, value) for number, value in enumerate(elements(text), start=1))
        except json.JSONDecodeError as error:
            raise DataFileError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
        except TypeError as error:
            raise DataFileError(f"{path}: holds one {error}; a .json data file is a list of rows") from None


def _separated_rows(delimiter: str) -> Callable[[Path, BinaryIO], Iterator[RawRow]]:
    """Read rows with the line they end in; strict, or a quote left open would swallow the rows after it."""

    def read(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
        csv.field_size_limit(sys.maxsize)
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
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
                        yield RawRow(reader.line_num, 0, _named(header, cells))
                    row_starts = reader.line_num + 1
            except csv.Error as error:
                raise DataFileError(f"{path}:{row_starts}: not {kind_of(path)[0][1:].upper()}: {error}") from None

    return read


def _named(header: Sequence[str], cells: Sequence[str]) -> object:
    """Name a line's cells; with cells beyond the header it is a fault."""
    if len(cells) > len(header):
        return RowError(f"the row has {len(cells)} cells, the header {len(header)}")
    return dict(zip(header, cells, strict=False))


READERS: dict[str, Callable[[Path, BinaryIO], Iterator[RawRow]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _separated_rows(","),
    ".tsv": _separated_rows("\t"),
}
