"""Checkpoints of a training: each is whole or not there at all, and is known to be what was written.

A checkpoint is one file: what torch saves, then a line with the SHA-256 of every byte before it. It is written under
another name, forced to disk and renamed, so that one step makes it complete; one that was cut short or altered since is
recognised by that line and passed over.
"""

import hashlib
import logging
import mmap
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from loragate.errors import VerificationError, first_line

LOG = logging.getLogger(__name__)
NAME = re.compile(r"checkpoint-(\d{8,})\.pt")
UNFINISHED = ".unfinished"
SEAL = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")
SEAL_BYTES = 73


class _Sealed:
    """A file that is written from its beginning to its end, and the digest of what went into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Write the digest's line and force the file to disk."""
        self._file.write(f"\nsha256 {self._digest.hexdigest()}\n".encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())


def write(folder: Path, step: int, content: dict[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of a step, on disk when this returns; then delete all but the newest `keep`.

    What other steps left unfinished or cut short goes, too, and so do later steps: they belong to a course that was
    given up. The content must be what `torch.load` reads as weights only: tensors, numbers, texts, None, lists, tuples
    and dicts.
    """
    assert keep >= 1, "the checkpoint just written is kept"
    path = folder / f"checkpoint-{step:08d}.pt"
    unfinished = path.with_name(path.name + UNFINISHED)
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished.open("wb") as file:
        sealed = _Sealed(file)
        torch.save(content, sealed)  # type: ignore[arg-type] # it only writes
        sealed.seal()
    unfinished.replace(path)
    _sync(folder)
    _prune(folder, step, keep)
    return path


def _sync(folder: Path) -> None:
    """Force a folder's names to disk: a rename is in the folder and not in the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(folder: Path, step: int, keep: int) -> None:
    written = _written(folder)
    complete = [number for number, path in written.items() if number <= step and _is_sealed(path)]
    for number, path in written.items():
        if number not in complete[-keep:]:
            path.unlink()
    for left in folder.glob(f"checkpoint-*{UNFINISHED}"):
        left.unlink()


def _written(folder: Path) -> dict[int, Path]:
    """Checkpoints by step, the newest last."""
    paths = folder.glob("checkpoint-*.pt")
    return dict(sorted((int(match[1]), path) for path in paths if (match := NAME.fullmatch(path.name))))


def _is_sealed(path: Path) -> bool:
    """Whether a file ends as a checkpoint does; what stands before the line is not read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - SEAL_BYTES))
            return SEAL.fullmatch(file.read()) is not None
    except OSError:
        return False


def newest(folder: Path) -> dict[str, Any] | None:
    """Read the newest complete checkpoint, its tensors on the CPU; None where there is none.

    One that is cut short, altered or cannot be read is passed over with a warning in the log that names it, and the one
    before it is read.
    """
    for path in reversed(_written(folder).values()):
        try:
            return _read(path)
        except (OSError, RuntimeError, VerificationError, pickle.UnpicklingError) as error:
            LOG.warning("checkpoint passed over: %s: %s", path, first_line(error))
    return None


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        VerificationError: It does not end with its digest, or the digest is another.
    """
    size = path.stat().st_size - SEAL_BYTES
    if size <= 0:
        raise VerificationError(f"{size + SEAL_BYTES} bytes are no checkpoint; it was cut short")
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as saved:
        file.seek(size)
        seal = SEAL.fullmatch(file.read())
        if seal is None:
            raise VerificationError("does not end with its digest; it was cut short or altered")
        found = hashlib.sha256(saved).hexdigest()
        if found != seal[1].decode("ascii"):
            raise VerificationError(
                f"has the digest {found[:12]}, written with {seal[1][:12].decode()}; it was altered"
            )
        content: dict[str, Any] = torch.load(saved, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
        return content


def random_state() -> dict[str, Any]:
    """The state of everything that random numbers come from: Python, numpy, torch, and every CUDA device."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "python": random.getstate(),
        "numpy": numpy | {"state": numpy["state"] | {"key": torch.from_numpy(numpy["state"]["key"].astype(np.int64))}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random(state: dict[str, Any]) -> None:
    """Go on where `random_state` was taken; CUDA devices by number, as many as are in the state and in the machine."""
    random.setstate(state["python"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(state["numpy"] | {"state": state["numpy"]["state"] | {"key": key}})
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, found in zip(range(devices), state["cuda"], strict=False):
        torch.cuda.set_rng_state(found, device)
