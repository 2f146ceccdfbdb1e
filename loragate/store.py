"""The run store: folders named by what went into them, with a marker that is written last.

A folder without its marker is unfinished and is built again; one whose bytes no
longer match its marker is never used. The key of a folder covers its inputs' digests, its settings, the source of the
code that works on them and the versions of the libraries that matter.
"""

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loragate.errors import BusyError, VerificationError
from loragate.refs import Ref, digest_file, digest_json, digest_manifest, digest_text, manifest

MARKER = "done.json"
KEY_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a step makes.

    Attributes:
        step: Name of the step, the first part of the folder's name.
        inputs: Digest of each input by name.
        settings: The part of the configuration that the step obeys, as JSON values.
        code: Modules whose source decides the outcome.
        libraries: Distributions whose version decides the outcome.
    """

    step: str
    inputs: Mapping[str, str]
    settings: Mapping[str, object] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Digest of the recipe: the name under which its outcome is kept."""
        return digest_json(
            {
                "step": self.step,
                "inputs": dict(self.inputs),
                "settings": dict(self.settings),
                "code": {module: code_digest(module) for module in self.code},
                "libraries": {name: importlib.metadata.version(name) for name in self.libraries},
            }
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished step.

    Attributes:
        ref: Its folder and the digest of its files.
        value: The small JSON value that the step returned.
        reused: Whether it was found rather than made.
    """

    ref: Ref
    value: object
    reused: bool

    def file(self, name: str) -> str:
        """Path of a file in the folder."""
        return str(Path(self.ref.path) / name)


def code_digest(module: str) -> str:
    """Digest the source of a module without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return digest_file(Path(spec.origin))


class Store:
    """Content-addressed folders below one root."""

    def __init__(self, root: Path) -> None:
        """Use the store at `root`; it is made when first written to."""
        self.root = root

    def find(self, recipe: Recipe) -> Stored | None:
        """Return what the recipe made earlier, or None where that is missing, unfinished or altered."""
        folder = self._folder(recipe)
        try:
            marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        files = _files(folder)
        if not isinstance(marker, dict) or files != marker.get("files"):
            return None
        if "value" not in marker or _value_digest(marker["value"]) != marker.get("value_digest"):
            return None
        return Stored(Ref(str(folder), digest_manifest(files)), marker["value"], reused=True)

    def holds(self, ref: Ref) -> Ref | None:
        """Return a finished step's folder as it lies here now, or None where it is gone or its bytes have changed.

        A home that was moved holds it under the same name.
        """
        for folder in (Path(ref.path), self.root / Path(ref.path).name):
            if (folder / MARKER).is_file() and digest_manifest(_files(folder)) == ref.digest:
                return Ref(str(folder), ref.digest)
        return None

    def value(self, ref: Ref) -> object:
        """Return the value of a finished step that is still as it was referenced.

        Raises:
            VerificationError: It is gone or was altered.
        """
        held = self.holds(ref)
        marker = json.loads((Path(held.path) / MARKER).read_text(encoding="utf-8")) if held else {}
        if "value" not in marker or _value_digest(marker["value"]) != marker.get("value_digest"):
            raise VerificationError(f"{ref.path}: gone, or altered since it was made; the next release makes it again")
        return marker["value"]

    def scratch(self, recipe: Recipe) -> Path:
        """Return the folder for what only a resume needs: it outlives an interrupted attempt, not a finished one."""
        return self._folder(recipe).with_suffix(".scratch")

    def build(self, recipe: Recipe, make: Callable[[Path], object]) -> Stored:
        """Return what the recipe made earlier, or make it now.

        `make` gets an empty folder, fills it and returns a JSON value.
        """
        folder = self._folder(recipe)
        with locked(self.root / f"{folder.name}.lock", f"the step {recipe.step} of another release"):
            found = self.find(recipe)
            if found is not None:
                return found
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            value = json.loads(json.dumps(make(folder)))
            files = manifest(folder)
            self._mark(folder, recipe, files, value)
            shutil.rmtree(self.scratch(recipe), ignore_errors=True)
            return Stored(Ref(str(folder), digest_manifest(files)), value, reused=False)

    def _folder(self, recipe: Recipe) -> Path:
        return self.root / f"{recipe.step}-{recipe.key[:KEY_DIGITS]}"

    @staticmethod
    def _mark(folder: Path, recipe: Recipe, files: Mapping[str, str], value: object) -> None:
        marker = {
            "recipe": asdict(recipe),
            "key": recipe.key,
            "files": files,
            "value": value,
            "value_digest": _value_digest(value),
        }
        write_atomically(folder / MARKER, json.dumps(marker, indent=1))


def _files(folder: Path) -> dict[str, str]:
    """A finished step's files and their digests."""
    return manifest(folder, without=frozenset({MARKER}))


def _value_digest(value: object) -> str:
    """Digest a value that may hold NaN or infinities, which canonical JSON has no form for."""
    return digest_text(json.dumps(value, sort_keys=True))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut; text as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def copy_linked(source: str, folder: Path) -> None:
    """Fill a folder with another one's files without copying their bytes, where the file system can.

    A file of the copy must not be written to in place: its bytes are the source's.
    """
    shutil.copytree(source, folder, copy_function=copy_file_linked, dirs_exist_ok=True)


def copy_file_linked(source: str, target: str) -> str:
    """Give a file's bytes a second name; copy them where the file system cannot."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
    return target


@contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Hold an operating-system lock that ends with its process, whatever ends that.

    Raises:
        BusyError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{holder} is running ({path} is locked); wait for it to end and try again") from None
        yield
