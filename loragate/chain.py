"""The chain: one line for every event of a home, each with the hash of the one before, the end signed.

    {"at":…,"event":…,"fields":{…},"number":1,"previous":"000…"}        chain.jsonl, canonical JSON, one a line
    {"hash":…,"length":…,"size":…}                                      head.json, in a signed envelope

A line is edited, dropped, added or moved: the hash in the next one, or in the head, is another. The end is cut off: the
signed head has another length. An older chain is put back together with its older head: no home can tell that by
itself, so heads are mirrored outside of it (into each bundle and into MLflow's versions).

The line is written first, the head after it. A line past the head is one whose writer was killed in between: nobody has
signed it, the next event takes its place, and until then verification names it.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from loragate.bundle import parse_canonical
from loragate.errors import VerificationError
from loragate.refs import canonical, digest_bytes
from loragate.store import write_atomically

CHAIN, HEAD = "chain.jsonl", "head.json"
START = "0" * 64
"""What stands in the first line for the hash of the one before."""


@dataclass(frozen=True, slots=True)
class Link:
    """One event.

    Attributes:
        number: Its place, from 1.
        previous: Hash of the line before.
        at: When it was written; no order follows from it.
        event: attempt, verdict, waiver, release, approval, promotion, rollback, closed or forgotten.
        fields: What happened, as digests and names.
    """

    number: int
    previous: str
    at: str
    event: str
    fields: Mapping[str, object]

    @property
    def line(self) -> bytes:
        """The line that holds it."""
        return canonical(asdict(self)) + b"\n"


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends.

    Attributes:
        hash: Of its last line.
        length: How many lines it has.
        size: How many bytes it has.
    """

    hash: str = START
    length: int = 0
    size: int = 0


Sign = Callable[[bytes], str]
"""Wraps a head into a signed envelope."""
Open = Callable[[str], bytes]
"""Returns the head out of an envelope that a known key has signed, or raises VerificationError."""


class Chain:
    """The chain in one folder; the processes of a machine take turns."""

    def __init__(self, folder: Path, sign: Sign, open_head: Open) -> None:
        """Use the chain in a folder, which is made when first written to."""
        self.folder = folder
        self._sign = sign
        self._open = open_head

    @property
    def _path(self) -> Path:
        return self.folder / CHAIN

    def head(self) -> Head:
        """Where the chain ends by its signed head.

        Raises:
            VerificationError: The head is missing or no known key has signed it.
        """
        return read_head(self.folder, self._open)

    def append(self, event: str, fields: Mapping[str, object]) -> Head:
        """Add an event and force it to disk; return where the chain ends now.

        Raises:
            VerificationError: The chain does not end as its head says. Nothing is added to a chain that was altered.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder / "lock"), self._path.open("a+b") as file:
            head = self.head()
            _require_size(file.seek(0, os.SEEK_END), head, self._path)
            _require_end(digest_bytes(self._last(head)) if head.length else START, head, self._path)
            file.truncate(head.size)
            line = Link(head.length + 1, head.hash, _now(), event, fields).line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            grown = Head(digest_bytes(line), head.length + 1, head.size + len(line))
            write_atomically(self.folder / HEAD, self._sign(canonical(asdict(grown))))
            return grown

    def _last(self, head: Head) -> bytes:
        """The line that ends where the head says."""
        with self._path.open("rb") as file:
            at, block = head.size, b""
            while at and b"\n" not in block[:-1]:
                step = min(at, 1 << 16)
                at -= step
                file.seek(at)
                block = file.read(step) + block
        return block[block[:-1].rfind(b"\n") + 1 :]

    def has(self, event: str, fields: Mapping[str, object]) -> bool:
        """Whether exactly this event is in the chain already."""
        if not self._path.is_file():
            return False
        wanted = json.loads(canonical(fields))
        lines = map(json.loads, self._path.read_bytes()[: self.head().size].splitlines())
        return any(line["event"] == event and line["fields"] == wanted for line in lines)


def read_head(folder: Path, open_head: Open) -> Head:
    """Read a chain's signed head; that of a chain without lines where there is neither.

    Raises:
        VerificationError: It is missing, or not as it was signed.
    """
    try:
        text = (folder / HEAD).read_text(encoding="utf-8")
    except FileNotFoundError:
        if not (folder / CHAIN).is_file() or (folder / CHAIN).stat().st_size == 0:
            return Head()
        raise VerificationError(f"{folder / HEAD}: missing, while {CHAIN} is there") from None
    except UnicodeDecodeError:
        raise VerificationError(f"{folder / HEAD}: not UTF-8 text") from None
    value = parse_canonical(str(folder / HEAD), open_head(text).decode("utf-8"))
    assert isinstance(value, dict)
    return Head(**value)


def read_chain(folder: Path, open_head: Open, *, to_go_on: bool = False) -> tuple[Link, ...]:
    """Read a whole chain and check every line of it; whoever goes on with it takes a killed writer's line out.

    Raises:
        VerificationError: The first line that is not as it was written, or the head.
    """
    with _shared(folder / "lock"):
        head = read_head(folder, open_head)
        try:
            content = (folder / CHAIN).read_bytes()
        except FileNotFoundError:
            content = b""
    links: list[Link] = []
    previous, size = START, 0
    for number, line in enumerate(content[: max(head.size, 0)].splitlines(keepends=True), 1):
        where = f"{folder / CHAIN}:{number}"
        links.append(_link(where, line, number, previous))
        previous, size = digest_bytes(line), size + len(line)
    _require_size(len(content), head, folder / CHAIN)
    _require_end(previous, head, folder / CHAIN)
    if len(content) > head.size and not to_go_on:
        told = "by a command that was killed, or by somebody without the key; the next release takes it out"
        raise VerificationError(f"{folder / CHAIN}:{head.length + 1}: after the signed end, written {told}")
    return tuple(links)


def _link(where: str, line: bytes, number: int, previous: str) -> Link:
    try:
        value = parse_canonical(where, line.removesuffix(b"\n").decode("utf-8"))
        assert isinstance(value, dict)
        link = Link(**value)
    except (UnicodeDecodeError, AssertionError, TypeError):
        raise VerificationError(f"{where}: not a line as it was written") from None
    if link.number != number:
        raise VerificationError(f"{where}: says it is line {link.number}; a line was dropped, added or moved")
    if link.previous != previous:
        raise VerificationError(f"{where}: does not follow on the line before: one of the two was altered")
    return link


def _require_size(size: int, head: Head, path: Path) -> None:
    if size < head.size:
        lines = f"{head.length:,} lines of {head.size:,} bytes"
        raise VerificationError(f"{path}: cut short; its signed head says {lines}, there are {size:,} bytes")


def _require_end(found: str, head: Head, path: Path) -> None:
    if found != head.hash:
        raise VerificationError(
            f"{path}:{head.length}: not the line that the signed head ends with; it was altered. "
            "`loragate verify RELEASE` names the first such line; move the folder aside to begin a new chain"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _shared(path: Path) -> Iterator[None]:
    """Read while nobody writes; a folder that cannot be written to has no writer."""
    try:
        file = path.open("r", encoding="utf-8")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def events(links: Sequence[Link], event: str) -> list[Mapping[str, object]]:
    """The fields of every event of a kind, in order."""
    return [link.fields for link in links if link.event == event]
