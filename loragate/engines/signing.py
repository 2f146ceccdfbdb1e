"""Signatures by ed25519 keys in OpenSSH's own forms: what `ssh-keygen` makes and what it checks.

A key is a file of `ssh-keygen -t ed25519`, a public key the line in its .pub file, a signature the armoured text that
`ssh-keygen -Y sign` writes (OpenSSH, PROTOCOL.sshsig, version 1): either side can be done without this program.

Promises: a signature is good for exactly these bytes, this key and this namespace, and in one spelling only, so that no
byte of it can be altered either.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from loragate.errors import ConfigError, VerificationError

MAGIC = b"SSHSIG"
VERSION = 1
KIND = b"ssh-ed25519"
HASH = b"sha512"
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
COLUMNS = 70
"""Length of a line in the armour, as ssh-keygen wraps it."""
WORD = 4
"""Bytes of a length or a number."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key to sign with; `public` is its public half as `ssh-ed25519 AAAA…`."""

    secret: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """The public half, without a comment."""
        return self.secret.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def new_key() -> PrivateKey:
    """Make a key that nobody has."""
    return PrivateKey(Ed25519PrivateKey.generate())


def load_private_key(path: Path, ask: Callable[[], str]) -> PrivateKey:
    """Read a private key; `ask` gives its passphrase and is called only where it has one.

    Raises:
        ConfigError: There is no such file, it holds no ed25519 key, or the passphrase is not the key's.
    """
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read: {error.strerror}") from None
    try:
        return _ed25519(path, _parsed(content, ask))
    except UnsupportedAlgorithm as error:
        why = f"a key with a passphrase is read with the package bcrypt ({error}); install it, or sign with ssh-keygen"
        raise ConfigError(f"{path}: {why}") from None
    except (ValueError, TypeError) as error:
        wants = "a private key that `ssh-keygen -t ed25519` wrote, and its passphrase where it has one"
        raise ConfigError(f"{path}: {error}; wanted: {wants}") from None


def _parsed(content: bytes, ask: Callable[[], str]) -> object:
    try:
        return load_ssh_private_key(content, None)
    except TypeError:  # it is protected by a passphrase
        return load_ssh_private_key(content, ask().encode())


def _ed25519(path: Path, key: object) -> PrivateKey:
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an ed25519 key; `ssh-keygen -t ed25519` makes one")
    return PrivateKey(key)


def sign(key: PrivateKey, content: bytes, namespace: str) -> str:
    """Sign bytes for one purpose; the same key, bytes and namespace give the same text."""
    signature = key.secret.sign(_signed(content, namespace, HASH))
    return _armoured(_blob(_key_bytes(key.public), namespace, HASH, signature))


def verify(content: bytes, signature: str, public: str, namespace: str) -> None:
    """Check that a public key's owner signed exactly these bytes for this purpose.

    Raises:
        VerificationError: It is not so; the message says what is wrong, without naming a file.
    """
    blob = _unarmoured(signature)
    try:
        found_key, found_namespace, algorithm, value = _parts(blob)
    except ValueError:
        raise VerificationError("the signature is not one of OpenSSH's") from None
    if found_key != _key_bytes(public):
        raise VerificationError("the signature was made with another key")
    if found_namespace != namespace.encode():
        told = found_namespace.decode("utf-8", "replace")
        raise VerificationError(f"the signature was made for {told!r}, not for {namespace!r}")
    if algorithm not in (b"sha256", b"sha512") or _blob(found_key, namespace, algorithm, value) != blob:
        raise VerificationError("the signature is not one of OpenSSH's")
    try:
        Ed25519PublicKey.from_public_bytes(_key_bytes(public)[-32:]).verify(
            value, _signed(content, namespace, algorithm)
        )
    except InvalidSignature:
        raise VerificationError("the signature is not that of these bytes: they were altered after signing") from None


def _key_bytes(public: str) -> bytes:
    """The bytes of a public key as the .pub file's second word has them."""
    return base64.b64decode(public.split()[1])


def _signed(content: bytes, namespace: str, algorithm: bytes) -> bytes:
    """What is signed in place of the bytes: magic, namespace, reserved, hash algorithm, hash."""
    digest = hashlib.new(algorithm.decode(), content).digest()
    return MAGIC + b"".join(map(_string, (namespace.encode(), b"", algorithm, digest)))


def _blob(key: bytes, namespace: str, algorithm: bytes, signature: bytes) -> bytes:
    """A signature's bytes: magic, version, public key, namespace, reserved, hash algorithm, signature."""
    inner = _string(KIND) + _string(signature)
    parts = (key, namespace.encode(), b"", algorithm, inner)
    return MAGIC + VERSION.to_bytes(WORD) + b"".join(map(_string, parts))


def _parts(blob: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Public key, namespace, hash algorithm and signature of a signature's bytes."""
    start = MAGIC + VERSION.to_bytes(WORD)
    key, namespace, _, algorithm, inner = _strings(blob.removeprefix(start))
    _, signature = _strings(inner)
    return key, namespace, algorithm, signature


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(WORD) + content


def _strings(content: bytes) -> Iterator[bytes]:
    while content:
        length = int.from_bytes(content[:WORD])
        yield content[WORD : WORD + length]
        content = content[WORD + length :]


def _armoured(blob: bytes) -> str:
    text = base64.b64encode(blob).decode("ascii")
    lines = [text[at : at + COLUMNS] for at in range(0, len(text), COLUMNS)]
    return "\n".join([BEGIN, *lines, END, ""])


def _unarmoured(text: str) -> bytes:
    try:
        blob = base64.b64decode("".join(text.splitlines()[1:-1]), validate=True)
    except ValueError:
        blob = b""
    if _armoured(blob) != text:
        raise VerificationError("the signature is not one of OpenSSH's, as ssh-keygen -Y sign writes them")
    return blob
