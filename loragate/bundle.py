"""The bundle of a release: a folder that holds what ships and the evidence for it, and says itself what must be in it.

`manifest.json` names every other file with its digest; `signature.json` is over every file, the manifest among them;
`signing-key.txt` is the public half of the key. All JSON that is written here is canonical (RFC 8785).

Promises: what is refused is refused by its name and kind before a byte of it is read; each file is read once; the first
thing wrong is named, in the same order on every machine.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loragate.errors import VerificationError
from loragate.refs import canonical, digest_bytes, digest_file

FORMAT = "loragate-bundle/1"
MANIFEST, SIGNATURE, KEY = "manifest.json", "signature.json", "signing-key.txt"
ALLOWED = (".gguf", ".html", ".jinja", ".json", ".jsonl", ".md", ".model", ".safetensors", ".txt", ".yaml")
"""What a file's name may end in: nothing that runs code where it is loaded."""
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", re.ASCII)
MOST_CHARS, MOST_PART_CHARS, MOST_FILES = 240, 120, 10_000
MOST_BYTES = 64 << 20
"""Longest manifest or signature that is read."""
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""What a pickle begins with, bare or in torch's zip file."""
HEADER_AT = 8
"""Where a safetensors file's JSON begins, after its length."""
GGUF = b"GGUF"


@dataclass(frozen=True, slots=True)
class Signed:
    """What a good signature is over.

    Attributes:
        files: Digest of every file by its name.
        key: Name of the key: the SHA-256 of its public half.
    """

    files: Mapping[str, str]
    key: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A bundle in which nothing is wrong.

    Attributes:
        manifest: What its manifest says.
        digests: Digest of every file, the signature's among them.
        key: Name of the key that signed it.
    """

    manifest: Mapping[str, object]
    digests: Mapping[str, str]
    key: str


Unseal = Callable[[str, str | None], Signed]
"""Reads a signature, given the text of it and of the bundle's own key (None where that file is missing)."""


def why_not_named(name: str) -> str:
    """Say why a bundle can hold no file of this name; nothing where it can."""
    parts = name.split("/")
    if len(name) > MOST_CHARS or any(len(part) > MOST_PART_CHARS for part in parts):
        return f"its name is longer than {MOST_CHARS} characters, or a part of it longer than {MOST_PART_CHARS}"
    if not all(PART.fullmatch(part) for part in parts):
        return "its name is not made of letters, digits and . _ + - in parts that begin with none of . + -"
    if PurePosixPath(name).suffix not in ALLOWED:
        return f"a bundle holds only {' '.join(ALLOWED)}"
    return ""


def why_not_content(name: str, path: Path) -> str:
    """Say why a file's first bytes are not those of its kind; nothing where they may be."""
    with path.open("rb") as file:
        begin = file.read(HEADER_AT + 1)
    if name.endswith(".safetensors"):
        return "" if begin[HEADER_AT:] == b"{" else "it does not begin as a safetensors file"
    if name.endswith(".gguf"):
        return "" if begin.startswith(GGUF) else "it does not begin as a GGUF file"
    return "it begins as a pickle" if begin.startswith(PICKLES) else ""


def list_files(folder: Path) -> dict[str, Path]:
    """List the files of a bundle by name, sorted; nothing is followed and nothing is read but first bytes.

    Raises:
        VerificationError: The first thing that no bundle holds: a link, a device, a name that is not safe, a kind that
            may run code.
    """
    found: dict[str, Path] = {}
    _walk(folder, "", found)
    folded: dict[str, str] = {}
    for name in found:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise VerificationError(f"{name}: differs from {other} by upper and lower case only")
    return found


def _walk(folder: Path, above: str, found: dict[str, Path]) -> None:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name, kind = above + entry.name, entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(kind) and PART.fullmatch(entry.name) and len(name) <= MOST_CHARS:
            _walk(Path(entry.path), f"{name}/", found)
            continue
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise VerificationError(f"{_shown(name)}: {'a link' if stat.S_ISLNK(kind) else 'no plain file'}")
        why = why_not_named(name) or why_not_content(name, Path(entry.path))
        if why:
            raise VerificationError(f"{_shown(name)}: {why}")
        found[name] = Path(entry.path)
        if len(found) > MOST_FILES:
            raise VerificationError(f"more than {MOST_FILES:,} files")


def _shown(name: str) -> str:
    """A name that is safe to print, cut where it is long."""
    text = name if name.isascii() and name.isprintable() else ascii(name)
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}…"


def parse_canonical(name: str, text: str) -> object:
    """Read JSON that must be in its one canonical spelling.

    Raises:
        VerificationError: It is not JSON, or is spelled in another way: somebody else wrote it.
    """
    try:
        value: object = json.loads(text)
        same = canonical(value) == text.encode("utf-8")
    except (ValueError, RecursionError):
        raise VerificationError(f"{name}: not JSON as it was written") from None
    if not same:
        raise VerificationError(f"{name}: not in its canonical spelling (RFC 8785), so it was altered")
    return value


def read_small(name: str, path: Path) -> str:
    """Read a text of a bundle that is never large.

    Raises:
        VerificationError: It is too large, or not UTF-8.
    """
    if path.stat().st_size > MOST_BYTES:
        raise VerificationError(f"{name}: larger than {MOST_BYTES:,} bytes")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise VerificationError(f"{name}: not UTF-8 text") from None


def check(folder: Path, unseal: Unseal) -> Checked:
    """Check a bundle whole: kinds and names, then its signature, then every byte, then its own manifest.

    Raises:
        VerificationError: The first thing wrong, beginning with the file's name.
    """
    _require_there(folder, (SIGNATURE, MANIFEST))
    files = list_files(folder)
    own = read_small(KEY, files[KEY]) if KEY in files else None
    signed = unseal(read_small(SIGNATURE, files[SIGNATURE]), own)
    digests = {name: digest_file(path) for name, path in files.items()}
    require_same(signed.files, {name: digest for name, digest in digests.items() if name != SIGNATURE}, SIGNATURE)
    manifest = parse_canonical(MANIFEST, read_small(MANIFEST, files[MANIFEST]))
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise VerificationError(f"{MANIFEST}: not a manifest of the form {FORMAT}")
    listed = {name: digest for name, digest in digests.items() if name not in (MANIFEST, SIGNATURE)}
    require_same(manifest["files"], listed, MANIFEST)
    for below in (path for path in sorted(folder.rglob("*")) if path.is_dir()):
        if not any(below.iterdir()):
            raise VerificationError(f"{below.relative_to(folder).as_posix()}: an empty folder, which no bundle has")
    return Checked(manifest, digests, signed.key)


def read_signed(folder: Path, names: Sequence[str], unseal: Unseal) -> tuple[dict[str, str], Signed]:
    """Read a few texts of a bundle, each held against the signature, without reading the rest of it.

    Raises:
        VerificationError: The signature is not good, or one of them is missing or not as it was signed.
    """
    own = read_small(KEY, folder / KEY) if (folder / KEY).is_file() else None
    _require_there(folder, (SIGNATURE, *names))
    signed = unseal(read_small(SIGNATURE, folder / SIGNATURE), own)
    texts = {name: read_small(name, folder / name) for name in names}
    for name, text in texts.items():
        if digest_bytes(text.encode("utf-8")) != signed.files.get(name):
            raise VerificationError(f"{name}: altered; {SIGNATURE} has another digest of it")
    return texts, signed


def _require_there(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise VerificationError(f"{name}: missing, so this is no bundle of a release, or it was taken out")


def require_same(expected: Mapping[str, str], found: Mapping[str, str], by: str) -> None:
    """Hold files that are there against those that should be, the manifest first, then by name.

    Raises:
        VerificationError: The first that is missing, altered, or not listed.
    """
    for name in sorted(expected.keys() | found.keys(), key=lambda each: (each != MANIFEST, each)):
        if name not in found:
            raise VerificationError(f"{_shown(name)}: missing; {by} lists it")
        if name not in expected:
            raise VerificationError(f"{_shown(name)}: not listed in {by}; it was added after signing")
        if expected[name] != found[name]:
            detail = f"its bytes have the SHA-256 {found[name][:12]}…, {by} says {str(expected[name])[:12]}…"
            raise VerificationError(f"{name}: altered; {detail}")
