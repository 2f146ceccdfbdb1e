"""JSON whose objects never lose a key, and lists that are read an element at a time."""

import json
from collections.abc import Iterator
from typing import TextIO

BLOCK_CHARS = 1 << 18
NEAR_END = 16
"""A fault this close to the end of what has been read may be a value that goes on: a number, a word, an escape."""


class Doubled(dict[str, object]):
    """A JSON object in which a key stands twice, or that holds such an object."""

    key: str


def parse(text: str) -> object:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: It is none.
    """
    value, end = _decode(text, _past_space(text, 0))
    if _past_space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def elements(stream: TextIO) -> Iterator[object]:
    """Yield the elements of the list that a stream holds, in memory bounded by the largest of them.

    Raises:
        json.JSONDecodeError: It holds no JSON; the fault's line and column are those in the stream.
        TypeError: It holds JSON that is no list; the message is its type.
    """
    window = _Window(stream)
    first = window.peek()
    if first != "[":
        raise TypeError(type(window.value()).__name__)
    window.position += 1
    if window.peek() == "]":
        window.position += 1
    else:
        yield window.value()
        while window.peek() == ",":
            window.position += 1
            yield window.value()
        if window.peek() != "]":
            raise window.fault("Expecting ',' delimiter")
        window.position += 1
    if window.peek():
        raise window.fault("Extra data")


class _Window:
    """The part of a stream that is being read.

    Attributes:
        position: Next character to look at, counted in the window.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.text = ""
        self.position = 0
        self.lines, self.column = 0, 0  # before the window: lines passed, and characters of the unfinished one

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        self.position = _past_space(self.text, self.position)
        while self.position == len(self.text) and self.more(BLOCK_CHARS):
            self.position = _past_space(self.text, self.position)
        return self.text[self.position : self.position + 1]

    def value(self) -> object:
        """The next value."""
        self.peek()
        block = BLOCK_CHARS
        while True:
            try:
                value, end = _decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if self._goes_on(error) and self.more(block):
                    block *= 2
                    continue
                raise self.fault(error.msg, error.pos) from None
            if end + NEAR_END > len(self.text) and self.more(block):
                continue
            self.position = end
            return value

    def _goes_on(self, error: json.JSONDecodeError) -> bool:
        return error.pos + NEAR_END > len(self.text) or error.msg.startswith("Unterminated string")

    def more(self, characters: int) -> bool:
        """Read on, and let go of what has been passed; say whether there was more."""
        block = self.stream.read(characters)
        if not block:
            return False
        passed = self.text[: self.position]
        newlines = passed.count("\n")
        self.lines += newlines
        self.column = len(passed) - passed.rfind("\n") - 1 if newlines else self.column + len(passed)
        self.text = self.text[self.position :] + block
        self.position = 0
        return True

    def fault(self, message: str, position: int | None = None) -> json.JSONDecodeError:
        """An error that names its place in the stream."""
        error = json.JSONDecodeError(message, self.text, self.position if position is None else position)
        error.colno += self.column if error.lineno == 1 else 0
        error.lineno += self.lines
        return error


def _decode(text: str, start: int) -> tuple[object, int]:
    """Decode the value that starts at a position; return it and where it ends."""
    try:
        return DECODER.raw_decode(text, start)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, start) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise json.JSONDecodeError(str(error).partition(";")[0], text, start) from None


def _past_space(text: str, start: int) -> int:
    match = json.decoder.WHITESPACE.match(text, start)  # type: ignore[attr-defined]
    return int(match.end())


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        return _doubled(values, next(key for key in keys if keys.count(key) > 1))
    for value in values.values():
        if isinstance(value, (list, Doubled)):
            inner = value if isinstance(value, list) else [value]
            twice = next((item for item in inner if isinstance(item, Doubled)), None)
            if twice is not None:
                return _doubled(values, twice.key)
    return values


def _doubled(values: dict[str, object], key: str) -> Doubled:
    found = Doubled(values)
    found.key = key
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
