"""A sealed release: nothing of it, or of the chain that it is in, can be altered without being named."""

import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import loragate
from model_signing import verifying
from sealed_home import ROWS, SealedHome, make_home

from loragate.bundle import KEY, MANIFEST, SIGNATURE
from loragate.engines import seals
from loragate.errors import ConfigError, VerificationError
from loragate.exporting import copy_bundle
from loragate.refs import digest_file, manifest
from loragate.release_commands import verified

Alter = Callable[[SealedHome], object]
PARTS = ("record", "chain", "releases", "keys")


@dataclass(frozen=True, slots=True)
class Case:
    """One way to tamper with a home's first release, and what must be named."""

    name: str
    alter: Alter
    named: str


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> SealedHome:
    return make_home(tmp_path_factory.mktemp("sealed"), releases=2)


@pytest.fixture
def home(sealed: SealedHome, tmp_path: Path) -> SealedHome:
    return fresh(sealed, tmp_path / "home")


def fresh(sealed: SealedHome, folder: Path) -> SealedHome:
    for part in PARTS:
        shutil.copytree(sealed.root / part, folder / part)
    return SealedHome(folder, sealed.digests)


def restore(home: SealedHome, sealed: SealedHome) -> None:
    """Make a home as it was, touching only what differs: thousands of files and folders are slow to make anew."""
    whole = {path.relative_to(sealed.root) for part in PARTS for path in (sealed.root / part).rglob("*")}
    for path in sorted((each for part in PARTS for each in (home.root / part).rglob("*")), reverse=True):
        if path.is_symlink() or (path.relative_to(home.root) not in whole and not path.is_dir()):
            path.unlink()
        elif path.relative_to(home.root) not in whole:
            path.rmdir()
    for name in sorted(whole):
        source, path = sealed.root / name, home.root / name
        if source.is_dir():
            path.mkdir(parents=True, exist_ok=True)
        elif not path.is_file() or path.read_bytes() != source.read_bytes():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(source.read_bytes())


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:  # in place: a file that is cut and written anew is flushed to the disk at once
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def lengthen(path: Path, more: bytes) -> None:
    with path.open("ab") as file:
        file.write(more)


def positions(size: int, most: int) -> list[int]:
    return sorted({round(step * (size - 1) / (most - 1)) for step in range(most)})


def file_cases(sealed: SealedHome) -> Iterator[Case]:
    folder = sealed.bundle()
    for name in manifest(folder):
        size, many = (folder / name).stat().st_size, 40 if name in (MANIFEST, SIGNATURE) else 12
        for number, at in enumerate(positions(size, many)):
            yield Case(f"flip {name}:{at}", lambda h, n=name, a=at, b=number % 8: flip(h.bundle() / n, a, b), name)
        yield Case(f"delete {name}", lambda h, n=name: (h.bundle() / n).unlink(), name)
        yield Case(f"cut {name}", lambda h, n=name, s=size: os.truncate(h.bundle() / n, s - 1), name)
        yield Case(f"empty {name}", lambda h, n=name: (h.bundle() / n).write_bytes(b""), name)
        yield Case(f"lengthen {name}", lambda h, n=name: lengthen(h.bundle() / n, b"\n"), name)
        if digest_file(folder / name) != digest_file(sealed.bundle(2) / name):
            yield Case(f"swap {name}", lambda h, n=name: shutil.copy(h.bundle(2) / n, h.bundle() / n), name)


def added(name: str, content: bytes = b"{}") -> Alter:
    def alter(home: SealedHome) -> None:
        path = home.bundle() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return alter


def linked(name: str, target: str) -> Alter:
    def alter(home: SealedHome) -> None:
        (home.bundle() / name).unlink(missing_ok=True)
        (home.bundle() / name).symlink_to(target)

    return alter


def strange_cases() -> Iterator[Case]:
    for name in ("extra.txt", "adapter/extra.json", "z.md", "model/0.jinja"):
        yield Case(f"add {name}", added(name), name)
    for name in ("a.bin", "a.pt", "a.pkl", "a.py", "a.so", "adapter/a.json.exe", "noending"):
        yield Case(f"add {name}", added(name), name)
    yield Case("add a pickle by another name", added("a.json", pickle.dumps([1])), "a.json")
    yield Case("add torch's zip", added("a.model", b"PK\x03\x04"), "a.model")
    yield Case("add weights that are a pickle", added("a.safetensors", pickle.dumps(list(range(99)))), "a.safetensors")
    yield Case("add a GGUF file that is a pickle", added("a.gguf", pickle.dumps([1])), "a.gguf")
    for name in (".hidden.txt", "a b.txt", "-rf.txt", "..txt", "x\u202egpj.txt", "a\nb.txt", "x/.git/config.txt"):
        yield Case(f"add {name!r}", added(name), ascii(name.removesuffix("/config.txt")).strip("'"))
    yield Case("add an oversized name", added("n" * 200 + ".txt"), "nnnn")
    yield Case("add a deep name", added("/".join(["d" * 60] * 5) + ".txt"), "dddd")
    yield Case("add an empty folder", lambda h: (h.bundle() / "empty").mkdir(), "empty")
    yield Case("add a name that differs by case", added("GATES.json"), "ates.json")
    yield Case("link out", linked("gates.json", "/etc/passwd"), "gates.json")
    yield Case("link inside", linked("gates.json", "config.json"), "gates.json")
    yield Case("link a folder", linked("more", "/etc"), "more")
    yield Case("add a pipe", lambda h: os.mkfifo(h.bundle() / "p.txt"), "p.txt")
    yield Case("two files change names", exchanged("gates.json", "config.json"), "config.json")
    yield Case("swap the bundles", exchanged_bundles, MANIFEST)
    yield Case("the bundle is gone", lambda h: shutil.rmtree(h.bundle()), "missing")


def exchanged(one: str, other: str) -> Alter:
    def alter(home: SealedHome) -> None:
        first, second = home.bundle() / one, home.bundle() / other
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)

    return alter


def exchanged_bundles(home: SealedHome) -> None:
    home.bundle().rename(home.root / "aside")
    home.bundle(2).rename(home.bundle())
    (home.root / "aside").rename(home.bundle(2))


def rewritten(change: Callable[[list[bytes]], list[bytes]]) -> Alter:
    def alter(home: SealedHome) -> None:
        lines = home.chain.read_bytes().splitlines(keepends=True)
        home.chain.write_bytes(b"".join(change(lines)))

    return alter


def flipped(name: str, at: int, bit: int) -> Alter:
    return lambda home: flip(home.root / "chain" / name, at, bit)


def chain_cases(sealed: SealedHome) -> Iterator[Case]:
    lines = sealed.chain.read_bytes().splitlines(keepends=True)
    start = 0
    for number, line in enumerate(lines):
        for step, at in enumerate(positions(len(line), 9)):
            yield Case(f"flip line {number + 1}", flipped("chain.jsonl", start + at, step % 8), "chain.jsonl")
        start += len(line)
        yield Case(f"drop line {number + 1}", rewritten(lambda f, n=number: f[:n] + f[n + 1 :]), "chain.jsonl")
        yield Case(f"double line {number + 1}", rewritten(lambda f, n=number: [*f[:n], f[n], *f[n:]]), "chain.jsonl")
        yield Case(f"end before line {number + 1}", rewritten(lambda found, n=number: found[:n]), "chain.jsonl")
        yield Case(f"end in line {number + 1}", rewritten(lambda f, n=number: [*f[:n], f[n][:-9]]), "chain.jsonl")
    for one, other in itertools.combinations(range(len(lines)), 2):
        yield Case(f"exchange lines {one + 1}, {other + 1}", rewritten(moved(one, other)), "chain.jsonl")
    head = sealed.root / "chain" / "head.json"
    for step, at in enumerate(positions(head.stat().st_size, 30)):
        yield Case(f"flip head:{at}", flipped("head.json", at, step % 8), "head.json")
    yield Case("no head", lambda h: (h.root / "chain" / "head.json").unlink(), "head.json")
    yield Case("no chain", lambda h: h.chain.unlink(), "chain.jsonl")
    yield Case("neither", lambda h: shutil.rmtree(h.root / "chain"), "chain.jsonl")
    yield Case("a line after the end", rewritten(lambda found: [*found, found[-1]]), "chain.jsonl:11")


def moved(one: int, other: int) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        lines[one], lines[other] = lines[other], lines[one]
        return lines

    return change


def journal_cases(sealed: SealedHome) -> Iterator[Case]:
    (path, _) = sorted((sealed.root / "record").glob("*/journal.jsonl"), key=lambda each: each.stat().st_mtime_ns)
    name = path.relative_to(sealed.root)
    detail = path.read_bytes().find(b"24 rows")
    yield Case("a finding is reworded", lambda h: flip(h.root / name, detail, 0), "journal.jsonl")
    yield Case("an event is added", lambda h: lengthen(h.root / name, b"{}x\n"), "journal.jsonl")


def test_no_tampering_is_missed_and_each_is_named(sealed: SealedHome, tmp_path: Path) -> None:
    groups = (file_cases(sealed), strange_cases(), chain_cases(sealed), journal_cases(sealed))
    cases = [case for group in groups for case in group]
    assert len(cases) >= 500
    wrong = []
    home = fresh(sealed, tmp_path / "home")
    for case in cases:
        restore(home, sealed)
        case.alter(home)
        said = complaint(home)
        if case.named not in said.replace(str(home.root), ""):
            wrong.append(f"{case.name}: {said or 'MISSED'}")
    assert wrong == []
    restore(home, sealed)
    assert complaint(home) == ""


def complaint(home: SealedHome) -> str:
    """What verification says is wrong with the first release; nothing where it finds it whole."""
    try:
        verified("tiny@1", (), str(home.root))
    except VerificationError as error:
        return str(error)
    return ""


def test_what_is_whole_is_verified_in_its_home_and_away_from_it(home: SealedHome, tmp_path: Path) -> None:
    here = verified("tiny@1", (), str(home.root))
    assert (here.trust, here.told["links"], here.digest, here.release) == ("home", 10, home.digests[0], "tiny@1")
    copy_bundle(home.bundle(2), tmp_path / "away", lambda folder: verified(folder, (), str(home.root)))
    away = verified(str(tmp_path / "away"), (), str(tmp_path / "nowhere"))
    assert (away.trust, away.chain, away.digest) == ("bundle", None, home.digests[1])
    public = next((home.root / "keys").glob("*.pub"))
    assert verified(str(tmp_path / "away"), (public,), None).trust == "given"
    assert manifest(tmp_path / "away") == manifest(home.bundle(2))


def test_a_bundle_that_somebody_else_signed_anew_is_told_from_ours_by_the_key(home: SealedHome, tmp_path: Path) -> None:
    from loragate.engines.sealing import seal

    thief, folder = seals.new_key(), home.bundle()
    (folder / KEY).write_text(thief.public, encoding="ascii")
    said = json.loads((folder / MANIFEST).read_text())
    said["files"][KEY] = digest_file(folder / KEY)
    (folder / MANIFEST).write_bytes(seals.canonical(said))
    (folder / SIGNATURE).unlink()
    seal(folder, thief)
    ours = next((home.root / "keys").glob("*.pub"))
    assert verified(str(folder), (), str(home.root)).trust == "bundle"
    with pytest.raises(VerificationError, match=f"{SIGNATURE}: made with a key that does not count"):
        verified(str(folder), (ours,), None)
    with pytest.raises(VerificationError, match=f"{SIGNATURE}: made with a key that does not count"):
        verified("tiny@1", (), str(home.root))


def test_an_older_chain_with_its_own_head_is_not_the_one_that_a_later_release_was_sealed_into(
    tmp_path: Path, sealed: SealedHome
) -> None:
    (tmp_path / "one").mkdir()
    one = make_home(tmp_path / "one", releases=1)
    older = shutil.copytree(one.root / "chain", tmp_path / "older")
    home = fresh(sealed, tmp_path / "home")
    shutil.rmtree(home.root / "chain")
    shutil.copytree(older, home.root / "chain")
    for public in (one.root / "keys").glob("*.pub"):
        shutil.copy(public, home.root / "keys" / "other.pub")
    with pytest.raises(VerificationError, match=r"chain\.jsonl: not the chain that the release was sealed into"):
        verified("tiny@2", (), str(home.root))


def test_openssf_s_own_verifier_takes_the_bundle_as_it_lies(home: SealedHome) -> None:
    folder = home.bundle()
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=folder / KEY)
    verifier.verify(folder, folder / SIGNATURE)
    flip(folder / "gates.json", 5, 0)
    with pytest.raises(ValueError, match=r"gates\.json"):
        verifier.verify(folder, folder / SIGNATURE)


def test_no_bit_of_a_signature_can_be_altered(home: SealedHome) -> None:
    folder = home.bundle()
    own, whole = (folder / KEY).read_text(), (folder / SIGNATURE).read_bytes()
    end = whole[-200:]
    taken = []
    for at, bit in itertools.product(range(len(end)), range(8)):
        altered = bytearray(end)
        altered[at] ^= 1 << bit
        try:
            seals.unseal((whole[:-200] + altered).decode("utf-8"), own)
            taken.append((at, bit))
        except (VerificationError, UnicodeDecodeError):
            continue
    assert taken == []


def test_the_bundle_holds_scores_gates_and_a_signed_provenance(home: SealedHome) -> None:
    folder = home.bundle()
    rows = [json.loads(line) for line in (folder / "scores/tuned.jsonl").read_text().splitlines()]
    assert rows == [{"row": at, "nats": row.nats, "tokens": row.tokens} for at, row in enumerate(ROWS, 1)]
    early, gate = json.loads((folder / "gates.json").read_text())
    assert early["inputs"] == {}
    shipped = json.loads((folder / MANIFEST).read_text())["artifacts"]
    assert set(gate["inputs"]) == {"base_model", "data", "scores/tuned", *shipped}
    assert {name: gate["inputs"][name] for name in shipped} == shipped
    assert (gate["gate"], gate["status"], gate["findings"][0]["value"]) == ("data", "pass", "Infinity")
    assert "passage_words" in gate["limits"]
    line = (folder / "provenance.intoto.jsonl").read_text().removesuffix("\n")
    statement = json.loads(seals.opened("provenance", line, seals.STATEMENT, (folder / KEY).read_text()))
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    shipped = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert shipped["gguf/model-q8_0.gguf"] == digest_file(folder / "gguf/model-q8_0.gguf")
    assert "adapter/adapter_model.safetensors" in shipped
    said = json.loads((folder / MANIFEST).read_text())
    assert set(said["left_out"]) == {"modeling_tiny.py"}
    assert said["seeds"] == {"train.seed": 0}
    assert all(said["digests"][name] for name in ("base", "data", "template", "tokenizer", "code", "environment"))


def test_nothing_in_a_bundle_names_the_machine_s_folders(home: SealedHome, sealed: SealedHome) -> None:
    texts = [path for path in home.bundle().rglob("*") if path.suffix in (".json", ".jsonl", ".html")]
    where = str(sealed.root.parent).encode()
    assert [path.name for path in texts if where in path.read_bytes()] == []


def test_an_export_never_goes_into_what_is_there(home: SealedHome, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="already there"):
        copy_bundle(home.bundle(), tmp_path / "there", str)


def test_the_command_verifies_exports_and_exits_with_4(home: SealedHome, tmp_path: Path) -> None:
    done = loragate("export", "tiny@1", "away", "--home", str(home.root), "--json", cwd=tmp_path)
    assert (done.code, done.json["files"]) == (0, len(manifest(home.bundle())))
    flip(tmp_path / "away" / "gates.json", 3, 0)
    done = loragate("verify", "away", "--home", str(home.root), cwd=tmp_path)
    assert done.code == 4
    assert "away: gates.json: altered" in done.stderr
    done = loragate("verify", "tiny@1", "--home", str(home.root), "--json", cwd=tmp_path)
    assert (done.code, done.json["verified"], done.json["links"]) == (0, True, 10)
