"""Data files into canonical rows on disk (pyarrow reads the .parquet ones)."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet

from loragate.child import Progress, Report
from loragate.errors import DataFileError
from loragate.rows import Raw, Row, read_file, short_names, split
from loragate.work import ReadRows


def read_rows(request: ReadRows, report: Report) -> dict[str, int]:
    """Write `train.jsonl` and `heldout.jsonl` with every row of the files and return their numbers of rows.

    Rows that could not be read stay in, with their problem, for the data gate to refuse.
    """
    files = request.train + (request.heldout if isinstance(request.heldout, tuple) else ())
    rows: dict[str, list[Row]] = {}
    names = short_names([Path(file) for file in files])
    for done, file in enumerate(files, start=1):
        rows[file] = list(read_file(Path(file), names[Path(file)], request.format, _parquet_rows))
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


def _parquet_rows(path: Path) -> Iterator[Raw]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataFileError(f"{path}: not a readable .parquet file: {error}") from None


def _write(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            messages = [[m.role, m.content] for m in row.messages]
            fields = {"file": row.file, "number": row.number, "messages": messages, "problem": row.problem}
            file.write(json.dumps(fields) + "\n")
            count += 1
    return count
