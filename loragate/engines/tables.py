"""Tables on disk (pyarrow): data files that are tables, zstd, and the facts table."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import pyarrow as pa
from pyarrow import ipc, parquet

from loragate.errors import DataFileError
from loragate.formats import Raw
from loragate.reading import Foreign

ROW_GROUP = 1 << 16
"""Rows of a facts table that are written together, however they came: the same facts are the same bytes."""


def table_rows(path: Path) -> Iterator[Raw]:
    """Read rows in batches, so that a large table never stands in memory whole.

    Raises:
        DataFileError: It is no table of the kind that its name says.
    """
    try:
        for batch in _batches(path):
            batch.validate(full=True)  # a damaged table otherwise ends the process, or is read as something else
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataFileError(f"{path}: not a readable {path.suffix} file: {error}") from None


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix.lower() == ".parquet":
        yield from parquet.ParquetFile(path).iter_batches(batch_size=4096)
        return
    with pa.memory_map(str(path)) as source, ipc.open_stream(source) as stream:
        yield from stream


def unpacked(path: Path) -> BinaryIO:
    """What a .zst file holds."""
    stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return cast(BinaryIO, io.BufferedReader(stream))


FOREIGN = Foreign(table_rows, unpacked)

TYPES: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}


def columns_of(kind: type, values: Sequence[Any]) -> pa.RecordBatch:
    """Flat dataclasses of one kind as columns."""
    names = [(field.name, TYPES[field.type]) for field in fields(kind)]
    arrays = [pa.array([getattr(value, name) for value in values], type_) for name, type_ in names]
    return pa.RecordBatch.from_arrays(arrays, [name for name, _ in names])


class TableWriter:
    """A .parquet file that is written as its rows come; its bytes do not depend on how they came."""

    def __init__(self, path: Path, kind: type) -> None:
        """Write flat dataclasses of one kind."""
        self.schema = columns_of(kind, ()).schema
        self.writer = parquet.ParquetWriter(path, self.schema, compression="zstd")
        self.waiting: list[pa.RecordBatch] = []
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        self.waiting.append(batch)
        self.rows += len(batch)
        while self.rows >= ROW_GROUP:
            self._write(ROW_GROUP)

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self.waiting, self.schema).combine_chunks()
        self.writer.write_table(table.slice(0, rows), row_group_size=ROW_GROUP)
        self.waiting = table.slice(rows).to_batches()
        self.rows -= rows

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, unless something went wrong."""
        if error is None:
            self._write(self.rows)
        self.writer.close()
