"""Taking a sealed bundle away: a copy that shares no byte with the home, and has its name only when it is whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from loragate.errors import ConfigError


def copy_bundle(source: Path, folder: Path, verify: Callable[[str], object]) -> None:
    """Copy a bundle into a folder that is not there yet, and verify the copy before it gets its name.

    Raises:
        ConfigError: Something is there already, or the folder cannot be written to.
        VerificationError: The copy is not the bundle.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} is already there; name a new folder")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, unfinished, symlinks=True)
        verify(str(unfinished))
        unfinished.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to: {error.strerror}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
