"""Passages of protected rows (benchmarks, what must not be forgotten) that no training row may hold.

A passage is a run of words in small letters, 13 long by default (Brown et al. 2020, arXiv 2005.14165, appendix C). A
protected text that is shorter is one passage, unless it is so short that it could stand anywhere; but whatever its
length, a protected question must not be asked in training.
"""

from collections.abc import Iterator, Sequence

from loragate.rows import Row
from loragate.words import words_of

FEWEST_WORDS = 8
"""Texts of fewer words are no passages (the shortest n-gram that Brown et al. look for)."""


class Passages:
    """Where each protected passage and question stands."""

    def __init__(self, words: int) -> None:
        """Take passages of so many words."""
        self.words = words
        self.places: dict[int, dict[str, str]] = {}
        self.questions: dict[str, str] = {}

    def add(self, row: Row) -> None:
        """Protect a row; one that cannot be read protects nothing."""
        if row.problem:
            return
        self.questions.setdefault(row.question_digest, row.place)
        for message in row.messages:
            words = words_of([message.content])
            length = min(self.words, len(words))
            if length >= min(FEWEST_WORDS, self.words):
                known = self.places.setdefault(length, {})
                for passage in _runs(words, length):
                    known.setdefault(passage, row.place)

    def find(self, row: Row, words: Sequence[str]) -> str:
        """Say which protected passage or question a row holds, given its words; empty where none."""
        place = self.questions.get(row.question_digest) if self.questions else None
        if place is not None:
            return f"asks what {place} asks"
        for length, known in self.places.items():
            found = next((passage for passage in _runs(words, length) if passage in known), None)
            if found is not None:
                return f"{length} words of {known[found]}: {found}"
        return ""


def _runs(words: Sequence[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))
