"""Keys of releases, and what is signed with them: EC keys in PEM, signatures in DSSE envelopes.

A release's signature is OpenSSF model-signing's: a Sigstore bundle over an in-toto statement with the digest of each
file. It is read here rather than by that library, because the library takes some altered bytes for good (the unused
bits at the end of base64), hashes every file by itself, and brings packages that who only verifies need not have.

Promises: everything is good in one spelling only, so that no byte can be altered; no network is used.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from loragate.bundle import KEY, SIGNATURE, Signed, Unseal, parse_canonical
from loragate.errors import ConfigError, VerificationError
from loragate.refs import canonical, digest_text

STATEMENT = "application/vnd.in-toto+json"
HEAD = "application/vnd.loragate.chain-head+json"
SEALED = "https://model_signing/signature/v1.0"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
"""Hash of a signature by its key's curve, as Sigstore has them."""
HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A private key to seal with."""

    secret: ec.EllipticCurvePrivateKey

    @property
    def public(self) -> str:
        """The public half as PEM."""
        return _pem(self.secret.public_key())

    @property
    def name(self) -> str:
        """The SHA-256 of the public half."""
        return key_name(self.public)

    @property
    def pem(self) -> bytes:
        """The private half as PEM, without a passphrase: for memory, not for a disk."""
        return self.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_name(public: str) -> str:
    """Name a public key: the SHA-256 of its PEM text."""
    return digest_text(public)


def new_key() -> SealingKey:
    """Make a key that nobody has."""
    return SealingKey(ec.generate_private_key(ec.SECP256R1()))


def write_pair(key: SealingKey, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a key pair as NAME.key, which only its owner can read, and NAME.pub.

    Raises:
        ConfigError: One of them is there already, or the folder cannot be written to.
    """
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if public.exists():
            raise FileExistsError
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.pem)
            os.fsync(descriptor)
        with public.open("x", encoding="ascii") as text:
            text.write(key.public)
    except FileExistsError:
        raise ConfigError(f"{private} or {public} is already there; a key is never overwritten") from None
    except OSError as error:
        raise ConfigError(f"{folder}: no key can be written there: {error.strerror}") from None
    return private, public


def load_key(content: bytes, where: str, passphrase: str | None = None) -> SealingKey:
    """Read a private key.

    Raises:
        ConfigError: It is not an EC key in PEM on one of the curves, or its passphrase is another.
    """
    wanted = "wanted: an EC private key in PEM (P-256, P-384 or P-521); `loragate init --key` makes one"
    try:
        key = _parsed(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "a passphrase is taken from LORAGATE_KEY_PASSPHRASE"
        raise ConfigError(f"{where}: no key that can be read ({type(error).__name__}); {wanted}; {why}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in HASHES:
        raise ConfigError(f"{where}: a key of another kind; {wanted}")
    return SealingKey(key)


def _parsed(content: bytes, passphrase: str | None) -> object:
    try:
        return load_pem_private_key(content, None)
    except TypeError:  # it is protected by a passphrase; one that is known and not needed is meant for another key
        if not passphrase:
            raise
        return load_pem_private_key(content, passphrase.encode())


def load_public(text: str, where: str) -> str:
    """Read a public key and return its PEM in the one spelling that names it.

    Raises:
        ConfigError: It is not an EC key in PEM on one of the curves.
    """
    try:
        return _pem(_public(text))
    except ValueError:
        raise ConfigError(f"{where}: no public key; wanted: an EC public key in PEM, as in a .pub file") from None


def read_keys(folder: Path) -> dict[str, str]:
    """Read every public key (.pub) of a folder, by its name.

    Raises:
        ConfigError: One of them is none.
    """
    return key_files(sorted(folder.glob("*.pub")))


def key_files(paths: Iterable[Path]) -> dict[str, str]:
    """Read public keys from files, by their names.

    Raises:
        ConfigError: One of them is none.
    """
    publics = [load_public(_text(path), str(path)) for path in paths]
    return {key_name(public): public for public in publics}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"--key {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--key {path}: no public key (PEM), as `loragate init --key DIR` writes it") from None


def _public(text: str) -> ec.EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(text.encode("ascii"))
    except UnsupportedAlgorithm:
        raise ValueError("a key of an unknown kind") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in HASHES:
        raise ValueError("a key of another kind")
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def sign(key: SealingKey, payload: bytes, kind: str) -> str:
    """Sign bytes of a kind; return the DSSE envelope."""
    signature = key.secret.sign(_authenticated(payload, kind), ec.ECDSA(HASHES[key.secret.curve.name]))
    return canonical(_envelope(payload, kind, signature, key.name)).decode("utf-8")


def opened(name: str, text: str, kind: str, public: str) -> bytes:
    """Return what a DSSE envelope holds, where a public key's owner signed exactly that.

    Raises:
        VerificationError: It is not so; the message begins with `name`.
    """
    envelope = parse_canonical(name, text)
    payload, signature = parts(name, envelope)
    if envelope != _envelope(payload, kind, signature, key_name(public)):
        raise VerificationError(f"{name}: signed with another key than {key_name(public)[:12]}, or altered")
    _require_signature(name, payload, kind, signature, public)
    return payload


def readers(head: Path, publics: Mapping[str, str]) -> tuple[Unseal, Callable[[str], bytes]]:
    """What reads signatures of bundles, and a chain's head in that file, that the owner of one of these keys made."""
    return partial(unseal, publics=publics), partial(opened_by_any, str(head), kind=HEAD, publics=publics)


def opened_by_any(name: str, text: str, kind: str, publics: Mapping[str, str]) -> bytes:
    """Return what a DSSE envelope holds, where the owner of one of these public keys signed it; see `opened`."""
    envelope = parse_canonical(name, text)
    try:
        key = envelope["signatures"][0]["keyid"]  # type: ignore[index]
    except (TypeError, KeyError, IndexError):
        key = None
    if not isinstance(key, str) or key not in publics:
        known = ", ".join(each[:12] for each in publics) or "none"
        raise VerificationError(f"{name}: altered, or signed with a key that is not known here (known: {known})")
    return opened(name, text, kind, publics[key])


def spelled(payload: bytes, signature: bytes, key: str) -> str:
    """The text of a release's signature: a Sigstore bundle in its canonical form."""
    material = {"publicKey": {"hint": key}, "tlogEntries": []}
    envelope = _envelope(payload, STATEMENT, signature, "")
    return canonical({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}).decode("utf-8")


def unseal(text: str, own: str | None, *, publics: Mapping[str, str] | None = None) -> Signed:
    """Read a release's signature with one of some public keys, or with the bundle's own where None is given.

    Raises:
        VerificationError: The signature or the bundle's own key is not as it was when it was signed.
    """
    value = parse_canonical(SIGNATURE, text)
    envelope = value.get("dsseEnvelope") if isinstance(value, dict) else None
    payload, signature = parts(SIGNATURE, envelope)
    public = _own(own, text, payload) if publics is None else _among(publics, value)
    hint = key_name(public)
    if text != spelled(payload, signature, hint):
        raise VerificationError(f"{SIGNATURE}: not made with the key {hint[:12]}, or altered")
    _require_signature(SIGNATURE, payload, STATEMENT, signature, public)
    return Signed(_signed_files(payload), hint)


def _own(own: str | None, text: str, payload: bytes) -> str:
    """The bundle's own key, which the signature names twice: as its key and among its files."""
    if own is None:
        raise VerificationError(f"{KEY}: missing; name the key that the release was signed with by --key")
    try:
        public = _pem(_public(own))
    except ValueError:
        raise VerificationError(f"{KEY}: holds no public key any more; it was altered") from None
    if public != own:
        raise VerificationError(f"{KEY}: not spelled as it was written; it was altered")
    if key_name(own) not in text and key_name(own).encode() not in payload:
        raise VerificationError(f"{KEY}: not the key that {SIGNATURE} was made with")
    return own


def _among(publics: Mapping[str, str], value: object) -> str:
    """The key that a signature names, out of those that count."""
    try:
        key = value["verificationMaterial"]["publicKey"]["hint"]  # type: ignore[index]
    except (TypeError, KeyError):
        key = None
    if not isinstance(key, str) or key not in publics:
        known = ", ".join(each[:12] for each in publics) or "none"
        raise VerificationError(f"{SIGNATURE}: made with a key that does not count here ({known} would), or altered")
    return publics[key]


def _signed_files(payload: bytes) -> dict[str, str]:
    try:
        statement = json.loads(payload)
        right = statement["predicateType"] == SEALED
        files = {each["name"]: each["digest"] for each in statement["predicate"]["resources"]}
        right = right and all(HEX.fullmatch(digest) for digest in files.values())
        right = right and {each["algorithm"] for each in statement["predicate"]["resources"]} == {"sha256"}
    except (ValueError, TypeError, KeyError, RecursionError):
        right = False
    if not right:
        raise VerificationError(f"{SIGNATURE}: signs something else than the files of a release")
    return files


def _require_signature(name: str, payload: bytes, kind: str, signature: bytes, public: str) -> None:
    key = _public(public)
    try:
        key.verify(signature, _authenticated(payload, kind), ec.ECDSA(HASHES[key.curve.name]))
    except InvalidSignature:
        raise VerificationError(f"{name}: altered; the signature is not that of key {key_name(public)[:12]}") from None


def _authenticated(payload: bytes, kind: str) -> bytes:
    """What DSSE signs in place of a payload (its pre-authentication encoding, version 1)."""
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload])


def _envelope(payload: bytes, kind: str, signature: bytes, key: str) -> dict[str, object]:
    signatures = [{"keyid": key, "sig": base64.b64encode(signature).decode("ascii")}]
    return {"payload": base64.b64encode(payload).decode("ascii"), "payloadType": kind, "signatures": signatures}


def parts(name: str, envelope: object) -> tuple[bytes, bytes]:
    """Payload and signature of an envelope.

    Raises:
        VerificationError: It is none.
    """
    try:
        assert isinstance(envelope, dict)
        (signature,) = envelope["signatures"]
        return base64.b64decode(envelope["payload"]), base64.b64decode(signature["sig"])
    except (AssertionError, ValueError, TypeError, KeyError):
        raise VerificationError(f"{name}: no signature as it was written") from None
