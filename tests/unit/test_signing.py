"""Signatures: what ssh-keygen makes is read, what is made here ssh-keygen would take, and nothing altered is good."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signers import new_key, write_key

from loragate.engines.signing import PrivateKey, load_private_key, sign, verify
from loragate.errors import ConfigError, VerificationError

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHIeoIFdnMtsg5JQ2Wdb/83cIb1fzL4QmKEVkP2dRTfC"
BY_SSH_KEYGEN = """\
-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgch6ggV2cy2yDklDZZ1v/zdwhvV
/MvhCYoRWQ/Z1FN8IAAAABdAAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gtZWQyNTUxOQAA
AEBUxF+jKtFT453DeZF/CmXZf07V13aJQfRxio9+y2fLc0hvUx4KGLK+2ENYA/ud1ikTXl
99y2q3fB5Jx5DATasK
-----END SSH SIGNATURE-----
"""
"""`printf hello | ssh-keygen -Y sign -n t` of OpenSSH 9.2 with PUBLIC's private key, which is lost."""
KEY = new_key()
SIGNATURE = sign(KEY, b"hello", "t")


def ssh_keygen() -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        pytest.skip("`ssh-keygen` is not on PATH (Debian: apt-get install openssh-client)")
    return found


def never() -> str:
    raise AssertionError("a key without a passphrase asked for one")


def test_a_signature_of_ssh_keygen_is_good_for_its_bytes_key_and_namespace_only() -> None:
    verify(b"hello", BY_SSH_KEYGEN, PUBLIC + " ada@laptop", "t")
    with pytest.raises(VerificationError, match="altered after signing"):
        verify(b"hello.", BY_SSH_KEYGEN, PUBLIC, "t")
    with pytest.raises(VerificationError, match="another key"):
        verify(b"hello", BY_SSH_KEYGEN, KEY.public, "t")
    with pytest.raises(VerificationError, match="made for 't', not for 'loragate-waiver'"):
        verify(b"hello", BY_SSH_KEYGEN, PUBLIC, "loragate-waiver")


def test_ssh_keygen_takes_our_signature_and_makes_the_same(tmp_path: Path) -> None:
    keygen, key = ssh_keygen(), write_key(tmp_path / "key", KEY)
    message, allowed = tmp_path / "message", tmp_path / "allowed"
    message.write_bytes(b"hello")
    subprocess.run([keygen, "-Y", "sign", "-n", "t", "-f", str(key), str(message)], check=True, capture_output=True)
    assert (tmp_path / "message.sig").read_text(encoding="ascii") == SIGNATURE
    allowed.write_text(f"ada@example.org {KEY.public}\n", encoding="ascii")
    who = ["-I", "ada@example.org", "-n", "t", "-f", str(allowed), "-s", str(tmp_path / "message.sig")]
    done = subprocess.run([keygen, "-Y", "verify", *who], input=b"hello", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_key_of_ssh_keygen_is_read(tmp_path: Path) -> None:
    command = [ssh_keygen(), "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    key = load_private_key(tmp_path / "key", never)
    assert (tmp_path / "key.pub").read_text(encoding="ascii") == f"{key.public} ada\n"


def test_a_key_with_a_passphrase_is_read_by_the_right_one_only(tmp_path: Path) -> None:
    pytest.importorskip("bcrypt")
    command = [ssh_keygen(), "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    key = load_private_key(tmp_path / "key", lambda: "secret")
    assert (tmp_path / "key.pub").read_text(encoding="ascii").startswith(key.public)
    with pytest.raises(ConfigError, match=r"key: .*wanted: a private key .* and its passphrase"):
        load_private_key(tmp_path / "key", lambda: "wrong")


def test_what_is_no_ed25519_key_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello", encoding="ascii")
    with pytest.raises(ConfigError, match=r"text: .*wanted: a private key"):
        load_private_key(tmp_path / "text", never)
    with pytest.raises(ConfigError, match="none: the key cannot be read: No such file"):
        load_private_key(tmp_path / "none", never)
    subprocess.run([ssh_keygen(), "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "other")], check=True)
    with pytest.raises(ConfigError, match="other: not an ed25519 key"):
        load_private_key(tmp_path / "other", never)


@given(st.data())
def test_no_byte_of_a_signature_can_be_altered(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(SIGNATURE) - 1))
    letter = data.draw(st.characters().filter(lambda c: c != SIGNATURE[position]))
    altered = SIGNATURE[:position] + letter + SIGNATURE[position + 1 :]
    with pytest.raises(VerificationError):
        verify(b"hello", altered, KEY.public, "t")


@given(st.text(max_size=80) | st.text(alphabet="AZaz09+/=\n", max_size=200).map(lambda t: BY_SSH_KEYGEN[:30] + t))
def test_no_text_but_a_signature_is_one(text: str) -> None:
    with pytest.raises(VerificationError):
        verify(b"hello", text, KEY.public, "t")


@given(st.binary(max_size=300), st.text(st.characters(codec="utf-8"), max_size=20))
def test_what_was_signed_verifies(content: bytes, namespace: str) -> None:
    verify(content, sign(KEY, content, namespace), KEY.public, namespace)


def test_the_key_does_not_show_in_a_text() -> None:
    secret = KEY.secret.private_bytes_raw().hex()
    assert secret not in repr(KEY)
    assert isinstance(KEY, PrivateKey)
