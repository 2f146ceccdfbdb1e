"""Words of a text, as near duplicates and protected passages are told by."""

import re
from collections.abc import Sequence

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
ASCII_WORD = re.compile(r"\w+", re.ASCII)
"""Finds the same words in a text of ASCII alone, in less time."""


def words_of(texts: Sequence[str]) -> list[str]:
    """The words of some texts in small letters; a character of a script without spaces is a word."""
    joined = "\n".join(texts).lower()
    return (ASCII_WORD if joined.isascii() else WORD).findall(joined)


def squeezed(text: str) -> str:
    """A text in small letters with single spaces: what a secret is looked for in."""
    return " ".join(text.casefold().split())
