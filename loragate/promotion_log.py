"""The log of a model's promotions: lines forced to disk, written by one process at a time.

The log, not MLflow's aliases, says who is champion: an alias can be moved by anybody, has no compare-and-swap, and goes
with a deleted version.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue as Json

from loragate.errors import VerificationError
from loragate.lines import append_line, whole_lines
from loragate.promotion import Happened, Intent, Line, Promotion, begun, grown
from loragate.record import now, read_as
from loragate.refs import digest_bytes


class PromotionLog:
    """One model's promotions in one home."""

    def __init__(self, folder: Path) -> None:
        """Use the log in a folder, which is made when first written to."""
        self.path = folder / "log.jsonl"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the turn, and keep it: comparing and swapping is one step for all processes of this home.

        The turn ends with its process, whatever ends that.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / "lock").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def lines(self) -> tuple[Line, ...]:
        """Read every line; one that a kill cut short is none.

        Raises:
            VerificationError: A line is none that was written here.
        """
        return tuple(self._line(number, line) for number, line in enumerate(whole_lines(self.path), 1))

    def _line(self, number: int, line: bytes) -> Line:
        try:
            return read_as(Line, json.loads(line))
        except ValueError:
            raise VerificationError(f"{self.path}:{number}: not a line as it was written") from None

    def through(self, name: str) -> tuple[int, str]:
        """Bytes up to the end of a promotion's last line before it was sealed, and their SHA-256.

        No later line changes them, so that a chain which holds the hash vouches for all of the log up to there.
        """
        lines = whole_lines(self.path)
        own = [n for n, line in enumerate(self.lines(), 1) if line.id == name and line.happened != "sealed"]
        content = b"".join(line + b"\n" for line in lines[: own[-1]])
        return len(content), digest_bytes(content)

    def prepare(self, intent: Intent) -> Promotion:
        """Begin a promotion."""
        self.append(Line(now(), intent.id, "prepared", asdict(intent)))
        return begun(intent)

    def note(self, promotion: Promotion, happened: Happened, value: Json) -> Promotion:
        """Write what happened to a promotion, and return how far it is now."""
        self.append(Line(now(), promotion.intent.id, happened, value))
        return grown(promotion, happened, value)

    def append(self, line: Line) -> None:
        """Add a line and force it to disk before returning."""
        append_line(self.path, json.dumps(asdict(line)))
