"""Which files a run file means by its data section: names, globs, folders and data sets of a hub.

A data set of a hub is a folder once it has been fetched; who fetches it tells `data_files` where it lies.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loragate.config import RunFile
from loragate.errors import DataFileError
from loragate.reading import COMPRESSIONS, KINDS, kind_of
from loragate.refs import digest_file, digest_json
from loragate.sources import DataSource

HELDOUT_SPLITS = ("valid", "validation", "test")
"""Splits of a data folder that can be held out; the first that is there is, where data.heldout is null."""

HELDOUT_SHARE = 0.1
"""Share of rows held out where the run file says nothing and no such split is there."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Side = Literal["train", "heldout", "general", "protected"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file and how it is used.

    Attributes:
        path: Where it lies on this machine.
        name: What the places of its rows call it: short, and the same wherever its folder lies.
        side: Training rows (which may be split), held-out rows, rows about what must not be forgotten, or rows that
            training rows must not repeat any more than those.
        weight: How often an epoch takes each of its training rows.
        format: Name of its rows' format, or auto.
        columns: (our name, the file's name) of columns to rename.
    """

    path: str
    name: str
    side: Side
    weight: float = 1.0
    format: str = "auto"
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of a run, each once a side, sorted by name.

    Attributes:
        heldout_share: Share of the training rows to hold out; 0 where held-out rows have files of their own.
    """

    files: tuple[DataFile, ...]
    heldout_share: float

    def of(self, side: Side) -> tuple[DataFile, ...]:
        """The files of one side."""
        return tuple(file for file in self.files if file.side == side)

    def digests(self) -> dict[str, str]:
        """Digest of each file's bytes, by name."""
        return {file.name: digest_file(Path(file.path)) for file in self.files}


def content_digest(digests: Mapping[str, str]) -> str:
    """Digest a data set by its files' bytes alone: their names, folders and order do not matter."""
    return digest_json(sorted(digests.values()))


def hub_sources(run: RunFile) -> list[DataSource]:
    """The entries of data.train that are data sets of a hub."""
    entries = [_as_source(entry) for entry in run.config.data.train]
    return [entry for entry in entries if _is_hub(run, entry)]


def hub_name(entry: DataSource) -> str:
    """What a data set of a hub is called here: its id, configuration and split."""
    return entry.source + (f":{entry.subset}" if entry.subset else "") + (f"[{entry.split}]" if entry.split else "")


def _as_source(entry: str | DataSource) -> DataSource:
    return DataSource(source=entry) if isinstance(entry, str) else entry


def _is_hub(run: RunFile, entry: DataSource) -> bool:
    """Whether an entry can only be meant for a hub: nothing local has its name, and it looks like an id."""
    if entry.subset or entry.split or entry.revision:
        return True
    local = run.resolve(entry.source)
    return bool(HUB_ID.fullmatch(entry.source)) and kind_of(local)[0] not in KINDS and not local.exists()


def data_files(run: RunFile, fetched: Mapping[str, Path] | None = None) -> DataFiles:
    """Find what the run file's paths and globs mean; data sets of a hub that are not `fetched`, by name, are left out.

    A folder means its `train` split, and its held-out split where data.heldout is null: an mlx-lm folder, one that
    the library datasets has saved, or else every data file in it.

    Raises:
        DataFileError: A pattern matches nothing, or a file of no known kind.
    """
    data, folders = run.config.data, fetched or {}
    train = list(_train_files(run, folders))
    heldout = data.heldout
    if heldout is None:
        roots = {run.resolve(_as_source(entry).source): "" for entry in data.train}
        whole = {hub_name(entry) for entry in hub_sources(run) if not entry.split}
        roots |= {folder: name for name, folder in folders.items() if name in whole}
        held = [_named(file, root, name) for root, name in roots.items() for file in _heldout_split(root)]
    else:
        held = _plain(run, "data.heldout", heldout) if isinstance(heldout, tuple) else []
    files = [*train, *(_file(run, "heldout", *named) for named in held)]
    files += [_file(run, "general", *named) for named in _plain(run, "data.general", data.general)]
    files += [_file(run, "protected", *named) for named in _plain(run, "data.holdout_against", data.holdout_against)]
    share = 0.0 if held else heldout if isinstance(heldout, float) else HELDOUT_SHARE
    return DataFiles(tuple(_shortened(files)), share)


def _train_files(run: RunFile, fetched: Mapping[str, Path]) -> Iterator[DataFile]:
    """Yield the training files with what their entries say; of two entries that mean a file, the later counts."""
    found: dict[Path, DataFile] = {}
    for entry in map(_as_source, run.config.data.train):
        if _is_hub(run, entry):
            folder = fetched.get(hub_name(entry))
            files = _split_files(folder, "train") if folder else []
            named = [_named(file, folder, hub_name(entry)) for file in files] if folder else []
        else:
            named = _plain(run, "data.train", (entry.source,))
        found.update({path: _file(run, "train", path, name, entry) for path, name in named})
    yield from found.values()


def _file(run: RunFile, side: Side, path: Path, name: str, entry: DataSource | None = None) -> DataFile:
    data = run.config.data
    columns = entry.columns if entry and entry.columns is not None else data.columns
    return DataFile(
        path=str(path),
        name=name,
        side=side,
        weight=entry.weight if entry else 1.0,
        format=(entry.format if entry else None) or data.format,
        columns=tuple(sorted(columns.items())),
    )


def _named(path: Path, root: Path, name: str) -> tuple[Path, str]:
    """A file with the name that it has in a data set; empty for a local one, which is named in the end."""
    return path.resolve(), f"{name}/{path.relative_to(root).as_posix()}" if name else ""


def _shortened(files: Sequence[DataFile]) -> Iterator[DataFile]:
    """Name local files by their paths below their common folder, and sort."""
    local = short_names([Path(file.path) for file in files if not file.name])
    named = [DataFile(f.path, f.name or local[Path(f.path)], f.side, f.weight, f.format, f.columns) for f in files]
    order: tuple[Side, ...] = ("train", "heldout", "general", "protected")
    yield from sorted(named, key=lambda file: (order.index(file.side), file.name))


def _plain(run: RunFile, key: str, patterns: Sequence[str]) -> list[tuple[Path, str]]:
    """Local files by their patterns, without names."""
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
    return [(path, "") for path in sorted(found)]


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
    root = os.path.commonpath([file.parent for file in files]) if files else ""
    return {file: file.relative_to(root).as_posix() for file in files}
