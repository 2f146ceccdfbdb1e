"""Keys and the sealing step: which key seals, what is never overwritten, and what a kill or an alteration leaves."""

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import ROOT, loragate, tied, write_run
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from sealed_home import fill, make_home

from loragate.attempt import Attempt
from loragate.chain import CHAIN, events, read_chain
from loragate.config import RunFile, load
from loragate.engines import seals
from loragate.errors import ConfigError, VerificationError
from loragate.home import Home, find_home
from loragate.record import Closed, now
from loragate.release_commands import verified
from tasks.attempts import opened
from tasks.release_keys import open_chain, readers, sealing_key
from tasks.seal_release import seal_release


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAGATE_SIGNING_KEY", "LORAGATE_KEY_PASSPHRASE", "LORAGATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def start(folder: Path, **sections: dict[str, object]) -> tuple[RunFile, Home]:
    run = load(write_run(folder, Path("model"), **{"gates": {}, **sections}))
    return run, find_home(None, run)


def begun(run: RunFile, home: Home, folder: Path) -> Attempt:
    attempt = Attempt(run, home)
    attempt.chain = open_chain(run, home)
    opened(attempt)
    fill(attempt, folder, 1)
    return attempt


def test_init_key_writes_a_pair_that_seals_and_overwrites_none(tmp_path: Path) -> None:
    done = loragate("init", "--key", "keys", "--json", cwd=tmp_path)
    private, public = (tmp_path / path for path in done.json["written"])
    assert (done.code, private.name, public.name) == (0, "signing.key", "signing.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = seals.load_key(private.read_bytes(), "the key")
    assert seals.key_files([public]) == {key.name: key.public}
    before = private.read_bytes()
    again = loragate("init", "--key", "keys", cwd=tmp_path)
    assert (again.code, private.read_bytes()) == (2, before)
    assert "never overwritten" in again.stderr


def test_the_run_file_s_key_comes_before_the_environment_s_and_that_before_the_home_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = start(tmp_path)
    own = sealing_key(run, home)
    assert sealing_key(run, home).name == own.name
    assert stat.S_IMODE((home.keys / "loragate.key").stat().st_mode) == 0o600
    file, content = seals.new_key(), seals.new_key()
    seals.write_pair(file, tmp_path / "ci", "ci")
    monkeypatch.setenv("LORAGATE_SIGNING_KEY", str(tmp_path / "ci" / "ci.key"))
    assert sealing_key(run, home).name == file.name
    monkeypatch.setenv("LORAGATE_SIGNING_KEY", content.pem.decode())
    assert sealing_key(run, home).name == content.name
    run.path.write_text(
        run.path.read_text().replace('"home": "home"', '"home": "home", "record": {"signing_key": "ci/ci.key"}')
    )
    assert sealing_key(load(run.path), home).name == file.name
    assert set(seals.read_keys(home.keys)) == {own.name, file.name, content.name}


@pytest.mark.parametrize("content", ["none of it", "", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"])
def test_what_is_no_key_is_refused_before_anything_is_on_record(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = start(tmp_path)
    (tmp_path / "no.key").write_text(content)
    monkeypatch.setenv("LORAGATE_SIGNING_KEY", str(tmp_path / "no.key"))
    with pytest.raises(ConfigError, match="no key that can be read"):
        open_chain(run, home)
    monkeypatch.setenv("LORAGATE_SIGNING_KEY", str(tmp_path / "missing.key"))
    with pytest.raises(ConfigError, match="the key cannot be read"):
        open_chain(run, home)
    assert not home.chain.exists()


def test_nothing_begins_on_a_chain_of_which_any_line_was_altered(tmp_path: Path) -> None:
    run, home = start(tmp_path)
    for number in range(4):
        open_chain(run, home).append("verdict", {"gate": str(number), "status": "fail"})
    path = home.chain / CHAIN
    lines = path.read_bytes().splitlines(keepends=True)
    with path.open("ab") as file:
        file.write(b'{"event":')  # a writer was killed here: the next event takes its place
    open_chain(run, home)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b"fail", b"pass"), *lines[2:]]))
    with pytest.raises(VerificationError, match=r"chain\.jsonl:3: does not follow on the line before"):
        open_chain(run, home)


def test_keys_of_other_kinds_and_wrong_passphrases_are_refused() -> None:
    other = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ConfigError, match="a key of another kind"):
        seals.load_key(other, "it")
    key = seals.new_key()
    locked = key.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open"))
    assert seals.load_key(locked, "it", "open").name == key.name
    assert seals.load_key(key.pem, "it", "meant for another key").name == key.name
    for wrong in ("shut", None):
        with pytest.raises(ConfigError, match="no key that can be read"):
            seals.load_key(locked, "it", wrong)


def test_sealing_twice_finds_the_bundle_and_puts_the_release_into_the_chain_once(tmp_path: Path) -> None:
    run, home = start(tmp_path)
    attempt = begun(run, home, tmp_path / "made")
    first = seal_release(attempt, "d" * 64)
    whole = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert seal_release(attempt, "d" * 64).files == first.files
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == whole
    _, open_head = readers(home)
    links = read_chain(home.chain, open_head)
    assert [fields["release"] for fields in events(links, "release")] == ["d" * 64]


def test_what_a_killed_sealing_left_is_no_bundle_and_is_not_in_the_way(tmp_path: Path) -> None:
    run, home = start(tmp_path)
    attempt = begun(run, home, tmp_path / "made")
    left = home.releases / ".unfinished" / "tiny" / ("d" * 64)
    left.mkdir(parents=True)
    (left / "half.pkl").write_bytes(b"\x80\x04")
    sealed = seal_release(attempt, "d" * 64)
    assert not (sealed.folder / "half.pkl").exists()
    assert not left.exists()
    assert verified(str(sealed.folder), (), str(home.root)).trust == "home"


def test_artifacts_are_linked_and_not_copied(tmp_path: Path) -> None:
    run, home = start(tmp_path)
    sealed = seal_release(begun(run, home, tmp_path / "made"), "d" * 64)
    assert (sealed.folder / "gguf/model-q8_0.gguf").samefile(tmp_path / "made/gguf/model-q8_0.gguf")


@pytest.mark.parametrize("name", ["gguf/model-q8_0.gguf", "adapter/adapter_model.safetensors"])
def test_other_bytes_than_the_gates_judged_are_not_sealed(tmp_path: Path, name: str) -> None:
    run, home = start(tmp_path)
    attempt = begun(run, home, tmp_path / "made")
    path = tmp_path / "made" / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(VerificationError, match="altered since the gates judged it"):
        seal_release(attempt, "d" * 64)
    assert not (home.releases / "tiny" / ("d" * 64)).exists()


def test_an_adapter_that_holds_a_pickle_is_not_sealed(tmp_path: Path) -> None:
    run, home = start(tmp_path)
    attempt = Attempt(run, home)
    attempt.chain = open_chain(run, home)
    opened(attempt)
    (tmp_path / "made" / "adapter").mkdir(parents=True)
    (tmp_path / "made" / "adapter" / "training_args.bin").write_bytes(b"\x80\x04")
    fill(attempt, tmp_path / "made", 1)
    with pytest.raises(VerificationError, match=r"adapter/training_args\.bin: a bundle holds only"):
        seal_release(attempt, "d" * 64)


def test_a_bundle_that_was_altered_is_not_registered_again(tmp_path: Path) -> None:
    run, home = start(tmp_path)
    attempt = begun(run, home, tmp_path / "made")
    sealed = seal_release(attempt, "d" * 64)
    (sealed.folder / "gates.json").write_text("[]", encoding="utf-8")
    with pytest.raises(VerificationError, match=r"gates\.json: altered.*move the folder away"):
        seal_release(attempt, "d" * 64)


def test_a_refused_attempt_cannot_be_verified_and_an_unsealed_release_is_missing(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with pytest.raises(ConfigError, match="no such release"):
        verified("tiny@9", (), str(home.root))
    home.bundle().rename(tmp_path / "away")
    with pytest.raises(VerificationError, match="tiny@1 has no sealed bundle here"):
        verified("tiny@1", (), str(home.root))


SEALER = """
import os, sys
import loragate.engines.report, loragate.engines.sealing
from sealed_home import seal_again
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        seal_again(*line.split())
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""
"""Seals in a process of its own for each line, with everything imported: a fork takes milliseconds."""


def test_a_sealing_killed_at_any_moment_is_ended_by_the_next_one(tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    sealer = subprocess.Popen(
        tied([sys.executable, "-c", SEALER]),
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    states = set()
    with sealer:
        assert sealer.stdin is not None
        assert sealer.stdout is not None
        for number in range(12):
            folder = tmp_path / str(number)
            folder.mkdir()
            run, home = start(folder)
            attempt = begun(run, home, folder / "made")
            sealer.stdin.write(f"{run.path} {attempt.id}\n")
            sealer.stdin.flush()
            child = int(sealer.stdout.readline())
            time.sleep(0.03 * number)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            assert sealer.stdout.readline() == "ended\n"
            states.add((home.releases / "tiny" / ("d" * 64)).exists())
            assert seal_release(attempt, "d" * 64).folder.is_dir()
            attempt.note("closed", "", Closed("released", "Released.", now(), "1", "d" * 64))
            assert verified("tiny@1", (), str(home.root)).trust == "home"
        sealer.stdin.close()
    assert False in states, "no child was killed before it had sealed"
