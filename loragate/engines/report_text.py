"""How the report writes texts and numbers, so that nothing on record can hide, break or mislead the page.

Every number that is not finite becomes a word; control characters and overrides of direction become visible.
"""

import math
import re
from datetime import datetime
from typing import Final

MOST_CHARACTERS = 2000
"""Longest text shown in one place; what is beyond it is counted."""

MINUTE: Final = 60
DASH: Final = "\N{EN DASH}"
DIVIDED: Final = "\N{DIVISION SIGN}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
_SMALL, _THOUSAND, _WHOLE, _HUGE = 1e-3, 1e3, 1e5, 1e12
_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def readable(text: str) -> str:
    """Cap a text and make visible what a page hides or obeys: control characters, overrides of direction."""
    beyond = len(text) - MOST_CHARACTERS
    start = text[:MOST_CHARACTERS].replace("\r\n", "\n")
    shown = _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", start)
    return f"{shown} … ({beyond:,} more characters)" if beyond > 0 else shown


def public(text: str) -> str:
    """Hide the credentials of an address, as in `https://user:secret@host`."""
    return re.sub(r"(?<=://)[^/\s]+@", "***@", text)


def number(value: float | None) -> str:
    """Write a number with about four digits, thousands apart; NaN and infinities as words, None as a dash."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    size = abs(value)
    if size >= _HUGE or 0 < size < _SMALL:
        return f"{value:.3g}"
    if size >= _WHOLE or value == int(value):
        return f"{round(value):,}"
    return f"{value:,.1f}" if size >= _THOUSAND else f"{value:.4g}"


def ratio(value: float | None) -> str:
    """Write a factor, as in x0.251; None as a dash."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{TIMES}{value:.3f}" if _SMALL <= value < _THOUSAND else f"{TIMES}{number(value)}"


def duration(seconds: float) -> str:
    """Write a time span with two units at most."""
    if not math.isfinite(seconds) or seconds < 0:
        return number(seconds)
    if round(seconds, 1) < MINUTE:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), MINUTE)
    return f"{minutes} min {rest} s" if minutes < MINUTE else f"{minutes // MINUTE:,} h {minutes % MINUTE} min"


def when(moment: str) -> str:
    """Write an ISO 8601 time for reading; anything else stays as it is."""
    try:
        return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return moment
