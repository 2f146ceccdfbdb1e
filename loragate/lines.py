"""Files that only grow by whole lines, each on disk before anything else happens."""

import os
from pathlib import Path
from typing import BinaryIO

BLOCK = 65536
"""Bytes that are read at a time when looking for the end of the last line."""


def append_line(path: Path, line: str) -> None:
    """Add a line and force it to disk; what a killed writer left of a line at the end is taken out first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a+b") as file:
        file.truncate(_whole(file))
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        _sync_folder(path.parent)


def _whole(file: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def whole_lines(path: Path) -> tuple[bytes, ...]:
    """Every line that was written to its end; none where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    return tuple(content[: content.rfind(b"\n") + 1].splitlines())


def _sync_folder(folder: Path) -> None:
    """Force a new file's name to disk, too."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
