"""Where a home is, known without reading anything of it: what `verify` of a bundle needs, and no more."""

import os
from pathlib import Path

KEYS = "keys"
"""Folder of a home that holds its keys."""


def home_root(given: str | None) -> Path:
    """The folder of a home: what is given, else LORAGATE_HOME, else ./.loragate."""
    return Path(given or os.environ.get("LORAGATE_HOME") or ".loragate").expanduser().absolute()
