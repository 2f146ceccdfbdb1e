"""MinHash sketches of texts (rensa), small enough to compare a million rows with each other.

Similarity is the Jaccard index (intersection over union) of the texts' sets of three-word shingles in small letters; a
character of a script that has no spaces is a word. A sketch holds 126 minima: 21 bands of 6, of which two texts of
similarity s share one with probability 1 - (1 - s^6)^21 (0.998 at 0.8), and the last byte of each, of which they share
about a share s.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

SHINGLE_WORDS = 3
BANDS, BAND_ROWS = 21, 6
PERMUTATIONS = BANDS * BAND_ROWS
SEED = 1
MOST_WORDS_KNOWN = 1 << 20

SKETCH = np.dtype([("fact", "<u8"), ("line", "<u4"), ("bands", "<u4", (BANDS,)), ("signs", "u1", (PERMUTATIONS,))])
"""One rendered row: the number of its facts, the length of its line in bytes, and its sketch."""

_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


class Hashes(dict[str, int]):
    """64-bit hashes of words, each worked out once."""

    def __missing__(self, word: str) -> int:
        """Work out a hash that is asked for the first time."""
        found = self[word] = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        return found


_known = Hashes()


def shingles_of(words: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """The shingles of a text; a text of fewer words is one shingle."""
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def sketch(texts: Sequence[Sequence[str]]) -> npt.NDArray[np.void]:
    """Sketch texts, given as words: one `SKETCH` each, `fact` and `line` left at 0."""
    sketches = np.zeros(len(texts), dtype=SKETCH)
    if not texts:
        return sketches
    hashes, starts = _shingle_hashes(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, PERMUTATIONS, SEED)
    minima = np.array(matrix.to_rows(), dtype=np.uint32)
    sketches["signs"] = minima.astype(np.uint8)
    bands = minima.reshape(len(texts), BANDS, BAND_ROWS).astype(np.uint64)
    mixed = np.zeros((len(texts), BANDS), dtype=np.uint64)
    for row in range(BAND_ROWS):
        mixed = _scrambled(mixed * _MIX[0] + bands[:, :, row])
    sketches["bands"] = (mixed >> np.uint64(32)).astype(np.uint32)
    return sketches


def _shingle_hashes(texts: Sequence[Sequence[str]]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Hash all shingles of all texts: one flat array, and where each text's begin and the last one's end."""
    if len(_known) > MOST_WORDS_KNOWN:
        _known.clear()
    lengths = np.fromiter((max(SHINGLE_WORDS, len(words)) for words in texts), np.int64, len(texts))
    ends = np.cumsum(lengths)
    flat = np.zeros(int(ends[-1]), dtype=np.uint64)
    for end, length, words in zip(ends.tolist(), lengths.tolist(), texts, strict=True):
        start = end - length
        flat[start : start + len(words)] = list(map(_known.__getitem__, words))
    first, second, third = flat[:-2], flat[1:-1], flat[2:]
    mixed = _scrambled(_scrambled(first * _MIX[0] + second) * _MIX[1] + third)
    inside = np.ones(len(flat), dtype=bool)
    inside[ends - 1] = inside[ends - 2] = False
    starts = np.concatenate([[0], np.cumsum(lengths - (SHINGLE_WORDS - 1))]).astype(np.uint64)
    return np.ascontiguousarray(mixed[inside[:-2]]), starts


def _scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread every bit over all others (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
