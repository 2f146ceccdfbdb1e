"""Near duplicates: rows that say almost what an earlier training row says.

Rows whose sketches share a band are candidates; those whose sketches as a whole look near enough are read back and
compared exactly, so nothing is reported that is not so. Bands are compared by sorting, one after the other, so memory
holds one band of all rows, and time grows with the number of rows as sorting does.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from loragate.child import Progress, Report
from loragate.engines.sketches import BANDS, PERMUTATIONS, SKETCH, shingles_of
from loragate.rendering import read_rendered
from loragate.row_work import FindNear
from loragate.texts import texts_of
from loragate.words import words_of

Indices = npt.NDArray[np.int64]

FIRST, LAST = 4, 4
"""Of the rows that share a band, each is a candidate with the first few training rows and with those just before it."""
SLACK_SIGMAS = 4.0
"""A sketch tells similarity with an error of sqrt(s (1 - s) / permutations); candidates may fall short by this many."""
MAX_COMPARED = 16
"""Candidates compared exactly for one row: where there are more, the data is full of copies and one is found early."""
CHUNK_PAIRS = 1 << 18


@dataclass(frozen=True, slots=True)
class Near:
    """A row that is near an earlier training row.

    Attributes:
        fact: Number of the row's facts.
        earlier, near: Number of the other's facts, and its place.
    """

    fact: int
    side: Literal["train", "heldout"]
    earlier: int
    near: str
    jaccard: float


@dataclass(frozen=True, slots=True)
class Said:
    """What a row says, as far as comparing needs it."""

    fact: int
    place: str
    shingles: frozenset[tuple[str, ...]]


class Lines:
    """Rendered rows by their numbers."""

    def __init__(self, file: BinaryIO, sketches: npt.NDArray[Any]) -> None:
        """Read from an open file that has a line a sketch."""
        self.file, self.facts = file, sketches["fact"]
        self.starts = np.concatenate([[0], np.cumsum(sketches["line"], dtype=np.int64)])

    def read(self, number: int) -> Said:
        """Read a row."""
        self.file.seek(int(self.starts[number]))
        _, conversation, place = read_rendered(self.file.readline())
        return Said(int(self.facts[number]), place, shingles_of(words_of(texts_of(conversation))))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rendered rows of one side and their sketches."""

    sketches: npt.NDArray[Any]
    path: Path

    @classmethod
    def of(cls, folder: Path, side: str) -> "Rows":
        """Find one side in a folder of prepared rows."""
        path = folder / f"{side}.sketches"
        empty = path.stat().st_size == 0
        return cls(np.zeros(0, SKETCH) if empty else np.memmap(path, SKETCH, "r"), folder / f"{side}.jsonl")

    @contextmanager
    def open(self) -> Iterator[Lines]:
        """Read rows while the context lasts."""
        with self.path.open("rb") as file:
            yield Lines(file, self.sketches)


def find_near(request: FindNear, report: Report) -> dict[str, int]:
    """Write `near.jsonl`: the row's fact, the place of the earlier training row it is near to, and their similarity."""
    folder = Path(request.rows)
    train, heldout = Rows.of(folder, "train"), Rows.of(folder, "heldout")
    pairs = _candidates(train, heldout, request.jaccard, report)
    found = {"train": 0, "heldout": 0}
    with (Path(request.folder) / "near.jsonl").open("w", encoding="utf-8") as out:
        for near in _confirmed(pairs, train, heldout, request.jaccard):
            out.write(json.dumps(asdict(near)) + "\n")
            found[near.side] += 1
    return found


def _candidates(train: Rows, heldout: Rows, jaccard: float, report: Report) -> npt.NDArray[np.int64]:
    """Pairs (row, earlier training row) whose sketches look near, sorted; held-out rows count on from training rows."""
    slack = SLACK_SIGMAS * float(np.sqrt(jaccard * (1 - jaccard) / PERMUTATIONS))
    fewest = int(np.floor(PERMUTATIONS * (jaccard - slack)))
    found: list[npt.NDArray[np.int64]] = []
    for band in range(BANDS):
        hashes = np.concatenate([train.sketches["bands"][:, band], heldout.sketches["bands"][:, band]])
        for row, earlier in _sharing(hashes, len(train.sketches)):
            near = _agreeing(train, heldout, row, earlier) >= fewest
            found.append(np.stack([row[near], earlier[near]], axis=1))
        report(Progress(band + 1, BANDS, "bands"))
    return np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)


def _sharing(hashes: npt.NDArray[np.uint32], train_rows: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield rows that share a hash, in chunks: (row, earlier training row)."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0))
    rank = np.arange(len(ordered)) - first
    members = np.flatnonzero(rank > 0)
    for start in range(0, len(members), CHUNK_PAIRS // (FIRST + LAST)):
        part = members[start : start + CHUNK_PAIRS // (FIRST + LAST)]
        steps = np.arange(FIRST)[:, None]
        others = np.concatenate([first[part] + steps, part - 1 - np.arange(LAST)[:, None]])
        good = (others >= first[part]) & (others < part)
        row = order[np.broadcast_to(part, others.shape)[good]]
        earlier = order[others[good]]
        trained = earlier < train_rows
        yield row[trained].astype(np.int64), earlier[trained].astype(np.int64)


def _agreeing(train: Rows, heldout: Rows, row: Indices, earlier: Indices) -> Indices:
    """How many minima two sketches share."""
    signs = np.empty((len(row), PERMUTATIONS), np.uint8)
    inside = row < len(train.sketches)
    signs[inside] = train.sketches["signs"][row[inside]]
    signs[~inside] = heldout.sketches["signs"][row[~inside] - len(train.sketches)]
    return np.asarray((signs == train.sketches["signs"][earlier]).sum(axis=1), dtype=np.int64)


def _confirmed(pairs: npt.NDArray[np.int64], train: Rows, heldout: Rows, jaccard: float) -> Iterator[Near]:
    """Compare each row with its candidates, the earliest first, until one is near."""
    with train.open() as train_lines, heldout.open() as heldout_lines:
        for start, end in _runs(pairs[:, 0]):
            row = int(pairs[start, 0])
            held = row >= len(train.sketches)
            mine = (heldout_lines if held else train_lines).read(row - held * len(train.sketches))
            for earlier in pairs[start : min(end, start + MAX_COMPARED), 1].tolist():
                other = train_lines.read(earlier)
                similarity = len(mine.shingles & other.shingles) / len(mine.shingles | other.shingles)
                if similarity >= jaccard:
                    side: Literal["train", "heldout"] = "heldout" if held else "train"
                    yield Near(mine.fact, side, other.fact, other.place, round(similarity, 4))
                    break


def _runs(values: Indices) -> Iterator[tuple[int, int]]:
    """Yield where each run of equal values starts and ends."""
    if not len(values):
        return
    edges = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    yield from zip(edges.tolist(), [*edges[1:].tolist(), len(values)], strict=True)
