"""Keys of persons who sign in tests; made anew in each run."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from loragate.engines.signing import PrivateKey


def new_key() -> PrivateKey:
    """A key of nobody yet."""
    return PrivateKey(Ed25519PrivateKey.generate())


def write_key(path: Path, key: PrivateKey) -> Path:
    """Write a private key as ssh-keygen does, readable by its owner alone."""
    path.write_bytes(key.secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path
