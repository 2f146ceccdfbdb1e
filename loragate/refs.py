"""References to bytes: a path and what must be found there.

A digest of a folder is the SHA-256 over its sorted manifest of POSIX paths and file digests; no timestamp and
no absolute path goes into it.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rfc8785

EXACT = 2**53
"""From here on a whole number may be none of those that a double can tell apart."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A file or folder and the digest of its bytes.

    Attributes:
        path: Where it lies on this machine.
        digest: SHA-256 as 64 hexadecimal digits.
    """

    path: str
    digest: str


def digest_json(value: object) -> str:
    """Digest a JSON value by its canonical form (RFC 8785): key order and spacing do not matter."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()  # type: ignore[arg-type]


def canonical(value: object) -> bytes:
    """Write a JSON value in its canonical form (RFC 8785).

    What that form has no number for is written as a text: "NaN", "Infinity", "-Infinity", and whole numbers beyond
    2**53, which a reader of JSON may round.
    """
    return rfc8785.dumps(_writable(value))  # type: ignore[arg-type]


def _writable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _writable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= EXACT:
        return str(value)
    return value


def digest_bytes(content: bytes) -> str:
    """Digest bytes."""
    return hashlib.sha256(content).hexdigest()


def digest_text(text: str) -> str:
    """Digest a text by its UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_file(path: Path) -> str:
    """Digest a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """List every file below a folder with its digest, sorted by POSIX path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in files)
    return {name: digest_file(path) for name, path in named if name not in without}


def digest_manifest(files: Mapping[str, str]) -> str:
    """Digest a manifest: the identity of a folder's content."""
    return digest_json(dict(sorted(files.items())))


def reference(path: Path) -> Ref:
    """Reference a file or a folder as it lies now."""
    digest = digest_manifest(manifest(path)) if path.is_dir() else digest_file(path)
    return Ref(str(path), digest)
