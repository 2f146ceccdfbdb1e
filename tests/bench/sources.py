"""The rows that defects are planted into: real ones where there are some, else made-up ones.

Real are two public sets that are no part of the project and lie in a folder of the user's: Alpaca's instructions
(`alpaca_en_demo.json`), and WikiSQL's tables and questions with the query that answers them (`wikisql/train.jsonl`,
`valid.jsonl`, `test.jsonl` in mlx-lm's form), which are read as questions and answers here.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from defects import WORD, Pair
from rows import pairs

HELDOUT_ROWS, PROTECTED_ROWS, MADE_ROWS = 150, 50, 1000
PASSAGE_WORDS, FEWEST_PASSAGE_WORDS = 13, 8
"""The data gate's: a protected text of fewer words than a passage is one, unless it has fewer than the second."""


@dataclass(frozen=True, slots=True)
class Source:
    """Sound rows, and the language that their answers are in; empty where that is none."""

    name: str
    train: tuple[Pair, ...]
    heldout: tuple[Pair, ...]
    protected: tuple[Pair, ...]
    language: str = ""


def sources(data: Path | None) -> list[Source]:
    """The rows to plant into: real ones, or made-up ones where there are none."""
    if data is None or not data.is_dir():
        made = list(pairs(MADE_ROWS, seed=1))
        return [_split("made", made)]
    alpaca = json.loads((data / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    asked = [("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in alpaca]
    train, heldout, protected = (tuple(_wikisql(data / f"wikisql/{name}.jsonl")) for name in ("train", "valid", "test"))
    return [_split("alpaca", asked), Source("wikisql", train, heldout, _foreign(protected, train))]


def _wikisql(path: Path) -> Iterator[Pair]:
    """Yield table and question, and the query that answers it."""
    for row in path.read_text(encoding="utf-8").splitlines():
        question, _, answer = json.loads(row)["text"].rpartition("\nA: ")
        yield question, answer


def _split(name: str, rows: Sequence[Pair]) -> Source:
    """Set the last rows aside: some are protected, some held out, of those whose question stands there once."""
    asked = Counter(question for question, _ in rows)
    aside = [pair for pair in rows if asked[pair[0]] == 1][-HELDOUT_ROWS - PROTECTED_ROWS :]
    train = tuple(pair for pair in rows if pair not in aside)
    return Source(name, train, tuple(aside[:HELDOUT_ROWS]), _foreign(aside[HELDOUT_ROWS:], train), "en")


def _foreign(protected: Sequence[Pair], train: Sequence[Pair]) -> tuple[Pair, ...]:
    """Leave out protected rows whose passages stand in training rows as they are: of these nothing can be planted."""
    texts = [f" {' '.join(WORD.findall(' '.join(pair).lower()))} " for pair in train]
    return tuple(pair for pair in protected if not any(run in text for run in _runs(pair) for text in texts))


def _runs(pair: Pair) -> Iterator[str]:
    for text in pair:
        words = WORD.findall(text.lower())
        length = min(PASSAGE_WORDS, len(words))
        if length >= FEWEST_PASSAGE_WORDS:
            yield from (f" {' '.join(words[i : i + length])} " for i in range(len(words) - length + 1))


def passages(protected: Sequence[Pair]) -> Iterator[str]:
    """Yield a passage out of each protected text that is long enough for one, as it is written there."""
    for text in (text for pair in protected for text in pair):
        words = list(WORD.finditer(text))
        first = (len(words) - PASSAGE_WORDS) // 2
        if first >= 0:
            yield text[words[first].start() : words[first + PASSAGE_WORDS - 1].end()]
