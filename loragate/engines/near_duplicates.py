"""Near duplicates: rows that say almost what an earlier training row says (rensa finds the candidates).

Similarity is the Jaccard index (intersection over union) of the rows' sets of three-word shingles in small letters.
MinHash with banding proposes candidates, which are then compared exactly, so nothing is reported that is not so. With
32 bands of 8 a pair of similarity s is proposed with probability 1 - (1 - s^8)^32: 0.997 at 0.8.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from rensa import RMinHash, RMinHashLSH

from loragate.child import Progress, Report
from loragate.rows import from_fields
from loragate.work import FindNear

SHINGLE_WORDS = 3
PERMUTATIONS, BANDS = 256, 32
SEED = 1
CHUNK_ROWS = 1000
MAX_CANDIDATES = 16
"""Candidates compared for one row: where there are more, the data is full of copies and one is found early."""

WORD = re.compile(r"\w+")


def find_near(request: FindNear, report: Report) -> dict[str, int]:
    """Write `near.jsonl`: side, place, the earlier training row it is near to, and their similarity."""
    folder, found = Path(request.rows), {"train": 0, "heldout": 0}
    index = RMinHashLSH(threshold=request.jaccard, num_perm=PERMUTATIONS, num_bands=BANDS)
    offsets: list[int] = []
    with (
        (folder / "train.jsonl").open("rb") as train,
        (Path(request.folder) / "near.jsonl").open("w", encoding="utf-8") as out,
    ):
        for side in ("train", "heldout"):
            for offset, place, shingles, sketch in _sketched(folder / f"{side}.jsonl", report, side):
                near = _nearest(shingles, index.query(sketch), train, offsets, request.jaccard)
                if near:
                    out.write(json.dumps({"side": side, "place": place, "near": near[0], "jaccard": near[1]}) + "\n")
                    found[side] += 1
                if side == "train":
                    index.insert(len(offsets), sketch)
                    offsets.append(offset)
    return found


def _sketched(path: Path, report: Report, side: str) -> Iterator[tuple[int, str, frozenset[str], RMinHash]]:
    """Yield each row's offset in its file, place, shingles and MinHash."""
    with path.open("rb") as file:
        total = sum(1 for _ in file)
        file.seek(0)
        offset = 0
        for start in range(0, total, CHUNK_ROWS):
            lines = [file.readline() for _ in range(min(CHUNK_ROWS, total - start))]
            rows = [(place, shingles) for place, shingles in map(_shingled, lines)]
            sketches = RMinHash.from_token_sets([list(s) for _, s in rows], PERMUTATIONS, SEED)
            for line, (place, shingles), sketch in zip(lines, rows, sketches, strict=True):
                yield offset, place, shingles, sketch
                offset += len(line)
            report(Progress(min(start + CHUNK_ROWS, total), total, f"{side} rows"))


def _shingled(line: bytes) -> tuple[str, frozenset[str]]:
    fields = json.loads(line)
    words = [word for m in from_fields(fields).messages for word in WORD.findall(m.said.lower())]
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return str(fields["place"]), frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in starts)


def _nearest(
    shingles: frozenset[str], candidates: Sequence[int], train: BinaryIO, offsets: Sequence[int], jaccard: float
) -> tuple[str, float] | None:
    """The first candidate that is near enough, read back from the file and compared exactly."""
    for number in sorted(candidates)[:MAX_CANDIDATES]:
        train.seek(offsets[number])
        place, other = _shingled(train.readline())
        similarity = len(shingles & other) / len(shingles | other)
        if similarity >= jaccard:
            return place, round(similarity, 4)
    return None
