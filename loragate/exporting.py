"""Taking a release away: its sealed bundle and its merged weights, in copies that share no byte with the home.

A copy has its name only when it is whole. Merged weights are no part of a bundle; their digest is, so that what lies in
the run store is held against the signed manifest.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.bundle import MANIFEST, SIGNATURE
from loragate.errors import ConfigError, VerificationError
from loragate.refs import Ref, digest_file, digest_manifest, manifest
from loragate.store import MARKER

if TYPE_CHECKING:  # a bundle is copied without what reading a home takes
    from loragate.home import Home
    from loragate.record import AttemptRecord

BESIDE = "-merged"
"""What the name of the folder with merged weights has behind that of the bundle."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file that ships, and the digest that the release has of it."""

    path: Path
    digest: str


def copy_bundle(source: Path, folder: Path, verify: Callable[[str], object]) -> None:
    """Copy a bundle into a folder that is not there yet, and verify the copy before it gets its name.

    Raises:
        ConfigError: Something is there already, or the folder cannot be written to.
        VerificationError: The copy is not the bundle.
    """
    _copy(source, folder, lambda copy: verify(str(copy)))


def copy_merged(merged: Ref, folder: Path) -> None:
    """Copy merged weights likewise.

    Raises:
        ConfigError, VerificationError: As for a bundle.
    """

    def verify(copy: Path) -> None:
        (copy / MARKER).unlink()
        if digest_manifest(manifest(copy)) != merged.digest:
            raise VerificationError(f"{merged.path}: altered while it was copied; export again")

    _copy(Path(merged.path), folder, verify)


def require_free(folder: Path) -> None:
    """Refuse a folder that is there already.

    Raises:
        ConfigError: It is.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} is already there; name a new folder")


def _copy(source: Path, folder: Path, verify: Callable[[Path], object]) -> None:
    require_free(folder)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, unfinished, symlinks=True)
        verify(unfinished)
        unfinished.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to: {error.strerror}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def beside(folder: Path) -> Path:
    """The folder of merged weights beside that of a bundle."""
    return folder.with_name(folder.name + BESIDE)


def bundle_files(folder: Path) -> dict[str, Shipped]:
    """Every file of a bundle that was verified, with its digest."""
    names = {**_said(folder)["files"], **{name: digest_file(folder / name) for name in (MANIFEST, SIGNATURE)}}
    return {name: Shipped(folder / name, digest) for name, digest in sorted(names.items())}


def merged_files(merged: Ref, below: str) -> dict[str, Shipped]:
    """Every file of merged weights, by its name below a folder."""
    found = manifest(Path(merged.path), without=frozenset({MARKER}))
    return {f"{below}/{name}": Shipped(Path(merged.path) / name, digest) for name, digest in found.items()}


def find_merged(home: "Home", record: "AttemptRecord", folder: Path) -> Ref:
    """Find the merged weights of a release in the run store, as the signed manifest of its bundle has them.

    Raises:
        VerificationError: They are gone, or other ones.
    """
    noted = record.artifacts["merged"]
    held = home.store.holds(Ref(noted.path, str(_said(folder)["artifacts"]["merged"])))
    if held is None:
        raise VerificationError(
            f"{noted.path}: the merged weights are gone, or altered since they were judged; release the same run file "
            "again: that makes them again and finds everything else as it is"
        )
    return held


def _said(folder: Path) -> dict[str, dict[str, str]]:
    said: dict[str, dict[str, str]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return said
