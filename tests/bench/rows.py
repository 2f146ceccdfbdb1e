"""Made-up chat rows in bulk, as realistic as a tokenizer can tell: a million in about two minutes on one core.

    .venv/bin/python tests/bench/rows.py rows.jsonl --rows 1000000 --seed 1

Nothing is compared here; the other measurements take their rows from this one. A row is a question and an answer in
`{"messages": [...]}` form, rendered about 200 tokens of SmolLM2's tokenizer, in lognormal lengths from about 55 to 700.
Words come from the docstrings of Python's own standard library, drawn by Zipf's law, in sentences, lists, paragraphs
and blocks of code; nothing of them is kept in the repository. Laws:

- the same seed and Python give the same rows, and fewer rows are the beginning of more;
- no question is asked twice: its last two words count the rows, in digits that are words;
- no row is near another: each word is drawn anew;
- no e-mail address, telephone number, key, blank to fill in or control token is among them.
"""

import argparse
import importlib
import inspect
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pydoc_data import topics

import numpy as np
import numpy.typing as npt

CHUNK_ROWS = 10_000
"""Rows drawn at once; about 1.3 million words."""

UNWANTED = {"antigravity", "this", "idlelib", "turtledemo", "__main__"}
PLAIN_WORD = re.compile(r"(?<![\w`.<\[{@'])(?:[aA]|[A-Za-z][a-z]{1,14})(?![\w(`>\]}@'])")
NOT_TAKEN = {"lorem", "ipsum", "insert", "enter", "your"}
"""Words that could make a row look as if a blank had not been filled in."""

SHARE_NUMBERS, SHARE_NAMES = 0.03, 0.02
ZIPF_SHIFT = 2.7
"""Probability of the word of rank r is as 1 / (r + 2.7) (Mandelbrot 1953), ranks from 0."""

QUESTION_WORDS, ANSWER_WORDS = (16.0, 0.5, 9, 90), (74.0, 0.65, 4, 340)
"""Lognormal lengths in words: median, sigma, shortest, longest."""

SENTENCE_WORDS, COMMA_WORDS = 13, 11
SHARE_PARAGRAPHS, SHARE_ITEMS, SHARE_CODE = 0.08, 0.06, 0.04
STARTS = (" ", "", " ", "\n\n", "\n- ")
"""What stands before a word inside a sentence, and before one that begins a text, a further sentence, a paragraph or an
item of a list."""

ENDS = ("", ",", ".", "?")
OPENERS = (
    ("How does", "?"), ("What is", "?"), ("Why should", "?"), ("When can", "?"), ("Which of", "?"), ("Where does", "?"),
    ("Can you say whether", "?"), ("Explain how", "."), ("Describe", "."), ("List", "."), ("Write about", "."),
    ("Summarize", "."), ("Compare", "."), ("Give an example of", "."), ("Rewrite this:", "."),
)  # fmt: skip

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What texts are made of.

    Attributes:
        telling: Two orders of the words, by which the last two words of questions are counted.
        cumulative: Sum of the probabilities of the items up to each.
        forms: Every item in every form, by start, end and item: `forms[(start * len(ENDS) + end) * items + item]`.
        blocks: Blocks of code.
    """

    telling: tuple[Indices, Indices]
    cumulative: npt.NDArray[np.float64]
    forms: Texts
    blocks: tuple[str, ...]


def main() -> None:
    """Write rows into a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the .jsonl file to write")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_rows(options.out, options.rows, options.seed)


def write_rows(path: Path, count: int, seed: int) -> None:
    """Write rows, one a line, never holding more than a chunk of them."""
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        file.writelines(line(question, answer) for question, answer in pairs(count, seed))


def line(question: str, answer: str) -> str:
    """A question and an answer as one line of JSON."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}, ensure_ascii=False) + "\n"


def pairs(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield questions and answers.

    Raises:
        ValueError: More are asked for than there are pairs of words to tell questions apart.
    """
    vocabulary = make_vocabulary(seed)
    most = len(vocabulary.telling[0]) ** 2
    if count > most:
        raise ValueError(f"{count:,} rows asked for; the words of the library can tell {most:,} questions apart")
    chunks = (_chunk(vocabulary, number, seed) for number in range(-(-count // CHUNK_ROWS)))
    return islice((pair for chunk in chunks for pair in chunk), count)


def make_vocabulary(seed: int) -> Vocabulary:
    """Make the vocabulary out of the standard library; the seed chooses numbers and blocks of code."""
    rng = np.random.default_rng([seed, 0])
    counted, names = _read_library()
    words = sorted(counted, key=lambda word: (-counted[word], word))
    numbers = [*(f"{n:,}" for n in rng.integers(2, 5000, 600)), *(f"{n / 100:.2f}" for n in rng.integers(1, 9999, 400))]
    ranks = np.arange(len(words))
    shares = [
        (1 - SHARE_NUMBERS - SHARE_NAMES) * _normed(1 / (ranks + ZIPF_SHIFT)),
        SHARE_NUMBERS * _normed(np.ones(len(numbers))),
        SHARE_NAMES * _normed(np.ones(len(names))),
    ]
    items = [*words, *numbers, *(f"`{name}`" for name in names)]
    begun = [items, *[[item[0].upper() + item[1:] for item in items]] * (len(STARTS) - 1)]
    forms = [start + item + end for start, kind in zip(STARTS, begun, strict=True) for end in ENDS for item in kind]
    blocks = tuple(_block(rng, words, names) for _ in range(500))
    telling = rng.permutation(len(words)), rng.permutation(len(words))
    return Vocabulary(telling, np.cumsum(np.concatenate(shares)), np.array(forms, dtype=object), blocks)


def _normed(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return weights / float(weights.sum())


def _read_library() -> tuple[Counter[str], list[str]]:
    """Count the words of the standard library's documentation, each text once; list what its modules offer."""
    texts, names = set(topics.topics.values()), set()
    for module_name in sorted(sys.stdlib_module_names - UNWANTED):
        if not module_name.startswith("_"):
            for name, text in _documented(module_name):
                names.add(name)
                texts.add(text)
    found = (word for text in texts for word in PLAIN_WORD.findall(text))
    return Counter(word.lower() for word in found if word.lower() not in NOT_TAKEN), sorted(names)


def _documented(module_name: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, docstring) of a module's functions, classes and their methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            return  # belongs to another operating system
        for name, thing in _public(module):
            yield f"{module_name}.{name}", _docstring(thing)
            methods = _public(thing) if inspect.isclass(thing) else ()
            yield from ((f"{module_name}.{name}.{method}", _docstring(value)) for method, value in methods)


def _docstring(thing: object) -> str:
    """The docstring; some classes have a descriptor in its place."""
    text: object = thing.__doc__
    return text if isinstance(text, str) else ""


def _public(place: object) -> list[tuple[str, object]]:
    found = ((name, thing) for name, thing in vars(place).items() if not name.startswith("_"))
    return [(name, thing) for name, thing in found if inspect.isroutine(thing) or inspect.isclass(thing)]


def _block(rng: np.random.Generator, words: list[str], names: list[str]) -> str:
    a, b, c, d = (words[n] for n in rng.integers(50, len(words), 4))
    name, other = (names[n] for n in rng.integers(0, len(names), 2))
    body = f"    for {b} in {name}({a}, {c}={rng.integers(100)}):\n        {d}[{b!r}] = {other}({b})\n"
    return f"\n\n```python\ndef {c}_{a}({a}, {d}):\n{body}    return {d}\n```"


def _chunk(vocabulary: Vocabulary, number: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield the rows of one chunk; where a chunk stands decides alone what is in it."""
    rng = np.random.default_rng([seed, number + 1])
    lengths = np.empty(2 * CHUNK_ROWS, dtype=np.int64)
    lengths[0::2], lengths[1::2] = _lengths(rng, QUESTION_WORDS), _lengths(rng, ANSWER_WORDS)
    stops = np.cumsum(lengths)
    openers = rng.integers(0, len(OPENERS), CHUNK_ROWS)
    items = np.searchsorted(vocabulary.cumulative[:-1], rng.random(int(stops[-1])), side="right")
    items[stops[0::2] - 2], items[stops[0::2] - 1] = _counted(number * CHUNK_ROWS, *vocabulary.telling)
    starts, ends = _forms(rng, lengths, stops, openers)
    kinds = vocabulary.forms.shape[0] // (len(STARTS) * len(ENDS))
    pieces = vocabulary.forms[(starts * len(ENDS) + ends) * kinds + items].tolist()
    codes = rng.integers(0, int(len(vocabulary.blocks) / SHARE_CODE), CHUNK_ROWS).tolist()
    asked, answered = [0, *stops[1:-1:2].tolist()], stops[0::2].tolist()
    for at, to, end, opener, code in zip(asked, answered, stops[1::2].tolist(), openers.tolist(), codes, strict=True):
        block = vocabulary.blocks[code] if code < len(vocabulary.blocks) else ""
        yield OPENERS[opener][0] + "".join(pieces[at:to]), "".join(pieces[to:end]) + block


def _lengths(rng: np.random.Generator, law: tuple[float, float, int, int]) -> Indices:
    median, sigma, shortest, longest = law
    drawn = rng.lognormal(np.log(median), sigma, CHUNK_ROWS)
    return np.clip(np.rint(drawn), shortest, longest).astype(np.int64)


def _counted(first: int, ones: Indices, tens: Indices) -> tuple[Indices, Indices]:
    """Two words for each row that no other row has both of: row = q * base + r gives r and (q + r) mod base."""
    base = len(ones)
    q, r = np.divmod(np.arange(first, first + CHUNK_ROWS), base)
    return ones[r], tens[(q + r) % base]


def _forms(rng: np.random.Generator, lengths: Indices, stops: Indices, openers: Indices) -> tuple[Indices, Indices]:
    """Choose what stands before and behind each word; questions are one sentence each, answers many."""
    count = int(stops[-1])
    in_answer = np.repeat(np.tile([False, True], CHUNK_ROWS), lengths)
    first = np.zeros(count, dtype=np.bool_)
    first[np.concatenate(([0], stops[:-1]))] = True
    drawn = rng.random((2, count))
    ending = (drawn[0] < 1 / SENTENCE_WORDS) & in_answer
    ending[1:] &= ~ending[:-1]  # no sentence of one word
    starting = np.concatenate(([False], ending[:-1])) & in_answer & ~first
    starts = np.zeros(count, dtype=np.int64)
    starts[starting] = _begun(drawn[1][starting])
    starts[first & in_answer] = 1
    commas = ~ending & (drawn[0] > 1 - 1 / COMMA_WORDS)
    ends = np.where(ending, 2, commas.astype(np.int64))
    ends[stops - 1] = 2
    ends[stops[0::2] - 2] = 0
    ends[stops[0::2] - 1] = np.array([ENDS.index(mark) for _, mark in OPENERS])[openers]
    return starts, ends


def _begun(drawn: npt.NDArray[np.float64]) -> Indices:
    """How a sentence begins: mostly behind the one before, else as a paragraph or as an item of a list."""
    items = drawn < SHARE_PARAGRAPHS + SHARE_ITEMS
    return np.where(drawn < SHARE_PARAGRAPHS, 3, np.where(items, 4, 2))


if __name__ == "__main__":
    main()
