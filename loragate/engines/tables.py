"""Data files into canonical rows on disk (pyarrow reads tables, and unpacks zstd)."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
from pyarrow import ipc, parquet

from loragate.child import Progress, Report
from loragate.errors import DataFileError
from loragate.files import Foreign, Reading, read_file, short_names
from loragate.formats import Raw
from loragate.rows import Row, canonical_line, split
from loragate.work import ReadRows


def read_rows(request: ReadRows, report: Report) -> dict[str, int]:
    """Write `train.jsonl` and `heldout.jsonl` with every row of the files and return their numbers of rows.

    Rows that could not be read stay in, with their problem, for the data gate to refuse.
    """
    files = request.train + (request.heldout if isinstance(request.heldout, tuple) else ())
    rows: dict[str, list[Row]] = {}
    names = short_names([Path(file) for file in files])
    reading = Reading(Foreign(_table_rows, _unpacked), request.format, dict(request.columns))
    for done, file in enumerate(files, start=1):
        rows[file] = list(read_file(Path(file), names[Path(file)], reading))
        report(Progress(done, len(files), "files"))
    train = [row for file in request.train for row in rows[file]]
    if isinstance(request.heldout, tuple):
        sides = tuple(train), tuple(row for file in request.heldout for row in rows[file])
    else:
        sides = split(train, request.heldout)
    return {
        name: _write(Path(request.folder) / f"{name}.jsonl", side)
        for name, side in zip(("train", "heldout"), sides, strict=True)
    }


def _table_rows(path: Path) -> Iterator[Raw]:
    """Read rows in batches, so that a large table never stands in memory whole."""
    try:
        for batch in _batches(path):
            batch.validate(full=True)  # a damaged table otherwise ends the process, or is read as something else
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataFileError(f"{path}: not a readable {path.suffix} file: {error}") from None


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix.lower() == ".parquet":
        yield from parquet.ParquetFile(path).iter_batches()
        return
    with pa.memory_map(str(path)) as source, ipc.open_stream(source) as stream:
        yield from stream


def _unpacked(path: Path) -> BinaryIO:
    stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return cast(BinaryIO, io.BufferedReader(stream))


def _write(path: Path, rows: Sequence[Row]) -> int:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(map(canonical_line, rows))
    return len(rows)
