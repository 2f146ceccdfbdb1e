"""The key that seals a home's releases, and the chain that it signs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.bundle import Unseal
from loragate.chain import HEAD, Chain, Open, read_chain
from loragate.config import RunFile
from loragate.errors import ConfigError
from loragate.home import Home
from loragate.narration import tell
from loragate.store import write_atomically

if TYPE_CHECKING:
    from loragate.engines.seals import SealingKey

VARIABLE = "LORAGATE_SIGNING_KEY"
OWN = "loragate"
"""Name of a home's own key pair."""


def sealing_key(run: RunFile, home: Home) -> "SealingKey":
    """The key that the run file names, else LORAGATE_SIGNING_KEY, else the home's own, made when first needed.

    Its public half is kept in the home.

    Raises:
        ConfigError: The key that is named is not there or is none.
    """
    from loragate.engines import seals

    passphrase = os.environ.get("LORAGATE_KEY_PASSPHRASE")
    named, variable = run.config.record.signing_key, os.environ.get(VARIABLE, "")
    own = home.keys / f"{OWN}.key"
    if named is not None:
        key = seals.load_key(
            _read(run.resolve(named), "record.signing_key"), f"{run.path}: record.signing_key", passphrase
        )
    elif variable.lstrip().startswith("-----BEGIN"):
        key = seals.load_key(variable.strip().encode(), VARIABLE, passphrase)
    elif variable:
        key = seals.load_key(_read(Path(variable).expanduser(), VARIABLE), VARIABLE, passphrase)
    elif own.exists():
        key = seals.load_key(_read(own, "the home's key"), str(own))
    else:
        key = seals.new_key()
        seals.write_pair(key, home.keys, OWN)
        tell(f"{'key':>12}  made {own}: whoever can read it can seal; `record.signing_key` names another")
    if key.name not in seals.read_keys(home.keys):
        write_atomically(home.keys / f"{key.name[:12]}.pub", key.public)
    return key


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: {path}: the key cannot be read: {error.strerror}") from None


def readers(home: Home) -> tuple[Unseal, Open]:
    """What reads the home's seals and the head of its chain, by any key of the home."""
    from loragate.engines import seals

    return seals.readers(home.chain / HEAD, seals.read_keys(home.keys))


def open_chain(run: RunFile, home: Home) -> Chain:
    """The home's chain, to be written to with the run file's key; heads signed by any key of the home are taken.

    Raises:
        VerificationError: A line of it was altered; nothing is to begin on it.
    """
    from loragate.engines import seals

    key = sealing_key(run, home)
    _, open_head = readers(home)
    read_chain(home.chain, open_head, to_go_on=True)
    return Chain(home.chain, lambda payload: seals.sign(key, payload, seals.HEAD), open_head)
