"""A cleaned copy of data files: what can be mended without guessing is, and nothing else is touched.

Texts are trimmed, exact copies of an earlier row of the same side are left out, and so are rows that a rule of the data
gate refuses. Every row keeps its own keys and its order; whatever a file was, its copy is JSON lines.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from loragate.child import Progress, Report
from loragate.engines.tables import FOREIGN
from loragate.errors import ConfigError
from loragate.files import DataFile
from loragate.reading import Reading, Shard, raw_value, read_shard, shards
from loragate.record import Fixed
from loragate.row_work import FixRows

SHARD_ROWS = 1000
MENDED = frozenset({"no_duplicates"})
"""Rules whose rows are mended here rather than left out."""


@dataclass(slots=True)
class Tally:
    """What has been done so far.

    Attributes:
        seen: Digests of the rows written, by side.
    """

    kept: int = 0
    trimmed: int = 0
    duplicates: int = 0
    rejected: int = 0
    seen: dict[str, set[bytes]] = field(default_factory=dict)


def fix(request: FixRows, report: Report) -> Fixed:
    """Write the cleaned copies into a folder.

    Raises:
        ConfigError: Something is in the folder already, or it cannot be written to.
    """
    out = Path(request.folder)
    rejected, tally, written = _rejected(request.rejects), Tally(), []
    try:
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"--fix {out}: something is there already; choose another folder")
        for file in (file for file in request.files if file.side in ("train", "heldout")):
            path = out / _copy_name(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as copy:
                for shard in shards(
                    Path(file.path), file.name, Reading(file.format, dict(file.columns)), FOREIGN, SHARD_ROWS
                ):
                    _fix_shard(shard, file, rejected, tally, copy)
                    report(Progress(tally.kept + tally.duplicates + tally.rejected, 0, "rows"))
            written.append(str(path))
    except OSError as error:
        raise ConfigError(f"--fix {out}: cannot be written to: {error.strerror}") from None
    return Fixed(tally.kept, tally.trimmed, tally.duplicates, tally.rejected, tuple(written))


def _copy_name(file: DataFile) -> str:
    """Name of a file's copy: its own, or with what it now is behind it."""
    return file.name if file.name.endswith(".jsonl") else f"{file.name}.jsonl"


def _rejected(path: str) -> set[str]:
    """Places of the rows that a rule refuses, unless what it refuses is mended here."""
    with Path(path).open(encoding="utf-8") as lines:
        entries = map(json.loads, lines)
        return {e["place"] for e in entries if e["severity"] == "refuse" and e["rule"] not in MENDED}


def _fix_shard(shard: Shard, file: DataFile, rejected: set[str], tally: Tally, copy: TextIO) -> None:
    seen = tally.seen.setdefault(file.side, set())
    for raw, row in zip(shard.raws, read_shard(shard), strict=True):
        if row.place in rejected:
            tally.rejected += 1
            continue
        digest = bytes.fromhex(row.trimmed.digest)
        if digest in seen:
            tally.duplicates += 1
            continue
        seen.add(digest)
        value = raw_value(shard.path, raw)
        trimmed = _trimmed(value)
        tally.kept += 1
        tally.trimmed += trimmed != value
        copy.write(json.dumps(trimmed, ensure_ascii=False, default=str) + "\n")


def _trimmed(value: object) -> object:
    """A value with white space taken off the ends of every text in it."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return {key: _trimmed(inner) for key, inner in value.items()}
    return [_trimmed(inner) for inner in value] if isinstance(value, list) else value
