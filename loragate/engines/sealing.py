"""Signing a release's folder with OpenSSF model-signing; reading the signature back is `loragate.engines.seals`."""

import json
import os
from pathlib import Path

from model_signing import hashing, signing

from loragate.bundle import SIGNATURE
from loragate.engines.seals import SealingKey, parts, spelled
from loragate.store import write_atomically


def seal(folder: Path, key: SealingKey) -> None:
    """Sign every file of a folder: write `signature.json` into it.

    The library wants a file to read the key from and gets one that exists in memory only.
    """
    target = folder / SIGNATURE
    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, key.pem)
        config = signing.Config().use_elliptic_key_signer(private_key=Path(f"/proc/self/fd/{descriptor}"))
        config.set_hashing_config(hashed).sign(folder, target)
    finally:
        os.close(descriptor)
    envelope = json.loads(target.read_text(encoding="utf-8"))["dsseEnvelope"]
    write_atomically(target, spelled(*parts(SIGNATURE, envelope), key.name))
