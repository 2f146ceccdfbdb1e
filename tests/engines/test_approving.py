"""Approving a release by the command line: what was signed counts; what was tampered with is named, and does not."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from commands import loragate, write_run
from sealed_home import SealedHome, make_home
from signers import new_key, write_key

from loragate.approvals import NAMESPACE, Approval, key_name, read_file
from loragate.cli import main
from loragate.engines import seals
from loragate.engines.signing import PrivateKey, sign
from loragate.errors import BlockedError, VerificationError
from loragate.home import Home
from loragate.listing import pick
from loragate.waivers import Waiver, WaiverFile
from tasks.approvals import require_approved, why_not_approved

KEYS = {name: new_key() for name in ("Ann", "Bob", "Sam", "Wim", "Eve")}
SEALER = seals.new_key()
WAIVER = Waiver("tiny", "plan/steps", "c" * 64, "6 steps", "Wim", "a pilot", "2099-01-01")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with a run file, its approvers and a home of two releases; two approvals are needed."""

    folder: Path
    digests: tuple[str, ...]

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    def call(self, command: str, *arguments: str, release: str = "tiny@1") -> Result:
        more = ("--home", str(self.home.root), "--config", str(self.folder / "run.yaml"), *arguments)
        return CliRunner().invoke(main, [command, release, *more])

    def approve(self, name: str, *arguments: str, release: str = "tiny@1") -> Result:
        return self.call("approve", "--key", str(self.folder / name), *arguments, release=release)

    def verify(self) -> Result:
        return CliRunner().invoke(main, ["verify", "tiny@1", "--home", str(self.home.root)])

    def standing(self, release: str = "tiny@1") -> dict[str, Any]:
        done = self.call("approvals", "--json", release=release)
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    def refused(self, release: str = "tiny@1") -> dict[str, str]:
        """Kinds of what does not count, by whose it is."""
        return {each["who"]: each["kind"] for each in self.standing(release)["refused"]}

    def blocked(self, version: int = 1) -> str:
        """Why a promotion is blocked; nothing where it is not."""
        record = pick(self.home, f"tiny@{version}")
        try:
            require_approved(self.home, record, self.digests[version - 1], self.folder / "run.yaml")
        except BlockedError as error:
            return str(error)
        return ""

    def file(self, name: str, version: int = 1) -> Path:
        return self.home.approvals / "tiny" / self.digests[version - 1] / f"{key_name(KEYS[name].public)}.json"

    def name_approvers(self, *names: str, **more: str) -> None:
        write_approvers(self.folder, names, more)


def write_approvers(folder: Path, names: tuple[str, ...], more: Mapping[str, str] | None = None) -> None:
    entries = [{"name": name, "key": KEYS[name].public, **(more or {})} for name in names]
    for entry in entries:
        if entry["name"] == "Sam":
            entry["seals"] = [SEALER.name]  # type: ignore[assignment]
    (folder / "approvers.yaml").write_text(json.dumps(entries), "utf-8")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> SealedHome:
    folder = tmp_path_factory.mktemp("approving")
    seals.write_pair(SEALER, folder / "home" / "keys", "loragate")
    for name, key in KEYS.items():
        write_key(folder / name, key)
    write_approvers(folder, ("Ann", "Bob", "Sam", "Wim"))
    waived = WaiverFile("w.json", WAIVER.text, "", new_key().public, WAIVER)
    return make_home(folder, 2, (waived,), record={"approvals": 2, "approvers": "approvers.yaml"})


@pytest.fixture
def place(sealed: SealedHome, tmp_path: Path) -> Place:
    shutil.copytree(sealed.root.parent, tmp_path / "copy")
    return Place(tmp_path / "copy", sealed.digests)


def test_as_many_approvals_as_are_needed_let_a_release_go(place: Place) -> None:
    assert "tiny@1: 2 approvals needed, 0 count; to approve, Ann or Bob: loragate approve tiny@1" in place.blocked()
    done = place.approve("Ann", "--reason", "read the report")
    assert done.exit_code == 0, done.output
    for told in ("you approve:", place.digests[0], "plan gate", "1 counts (Ann)", str(place.file("Ann"))):
        assert told in done.stdout
    assert "2 approvals needed, 1 counts (Ann); to approve, Bob: " in place.blocked()
    told = place.standing()
    assert (told["granted"], told["needed"], told["waiting"]) == (False, 2, ["Bob"])
    assert [(each["name"], each["reason"]) for each in told["counted"]] == [("Ann", "read the report")]
    done = place.approve("Bob", "--json", "--expires", "7d")
    assert (done.exit_code, json.loads(done.stdout)["standing"]["granted"]) == (0, True)
    assert place.blocked() == ""
    assert place.call("approvals").stdout.startswith("APPROVED  tiny@1  2 of 2 approvals\n")
    assert "chain of 14 events" in place.verify().stdout
    records = place.home.records()
    why = [
        why_not_approved(place.home, record, place.digests[at])
        for at, record in enumerate(sorted(records, key=lambda r: r.release or ""))
    ]
    assert why == ["", place.blocked(2)]
    assert why[1].startswith("tiny@2: 2 approvals needed, 0 count")


def test_the_signature_is_openssh_s_over_the_canonical_statement(place: Place) -> None:
    place.approve("Ann")
    approval, signature = read_file(place.file("Ann").read_text("utf-8"))
    assert signature == sign(KEYS["Ann"], approval.content, NAMESPACE)
    assert (approval.model, approval.release, approval.decision) == ("tiny", place.digests[0], "approved")


def test_a_rejection_blocks_whoever_approves_until_it_is_withdrawn(place: Place) -> None:
    place.approve("Ann")
    place.approve("Bob")
    done = place.approve("Wim", "--reject", "--reason", "it swears")
    assert (done.exit_code, "until it is withdrawn" in done.stdout) == (0, True)
    assert place.blocked().startswith("tiny@1: rejected by Wim: it swears; 2 approvals needed, 2 count (Ann, Bob)")
    assert "\nrejected   Wim  it swears\n" in place.call("approvals").stdout
    place.approve("Ann", "--reject")
    place.approve("Ann")
    assert place.blocked().startswith("tiny@1: rejected by Wim")
    done = place.approve("Wim")  # whose approval does not count: a rule was waived by Wim
    assert (done.exit_code, place.blocked(), place.refused()) == (0, "", {"Wim": "self-made"})


def test_a_rejection_does_not_end_with_its_file(place: Place) -> None:
    place.approve("Ann")
    place.approve("Bob")
    kept = place.file("Bob").read_bytes()
    place.approve("Bob", "--reject")
    assert place.verify().exit_code == 0
    place.file("Bob").write_bytes(kept)
    assert place.refused() == {"Bob": "unrecorded"}
    assert "tiny@1: rejected by Bob: its file is gone or is another one" in place.blocked()
    assert "older than what" in place.verify().stderr
    place.file("Bob").unlink()
    assert "tiny@1: rejected by Bob: its file is gone" in place.blocked()
    done = place.verify()
    assert (done.exit_code, f"{place.file('Bob')}: missing" in done.stderr) == (4, True)
    assert place.approve("Bob").exit_code == 0
    assert (place.blocked(), place.verify().exit_code) == ("", 0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Eve", "is not among the approvers"),
        ("Sam", "Sam holds the key that sealed this release; another pair of eyes has to approve it"),
        ("Wim", "Wim signed the waiver of plan/steps; another pair of eyes has to approve it"),
    ],
)
def test_who_may_not_approve_is_told_so_and_nothing_is_written(place: Place, name: str, why: str) -> None:
    done = place.approve(name)
    assert (done.exit_code, why in done.stderr, place.home.approvals.exists()) == (5, True, False), done.output
    assert place.verify().exit_code == 0


def test_a_wrong_key_file_or_end_is_a_usage_error(place: Place) -> None:
    assert place.approve("Ann", "--expires", "2020-01-01").exit_code == 2
    assert place.approve("Nobody").exit_code == 2
    assert place.call("approve", "--key", str(place.home.keys / "loragate.key")).exit_code == 2
    assert place.approve("Ann", release="tiny@9").exit_code == 2
    assert not place.home.approvals.exists()


def rewrite(place: Place, approval: Approval, key: PrivateKey, **changed: str) -> None:
    """Write what Bob has signed anew, as somebody with a key could."""
    other = replace(approval, **changed)
    place.file("Bob").write_bytes(other.file(sign(key, other.content, NAMESPACE)))


def test_what_was_forged_expired_or_made_elsewhere_does_not_count(place: Place) -> None:
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    place.approve("Ann")
    place.approve("Bob")
    assert place.blocked() == ""
    approval, _ = read_file(place.file("Bob").read_text("utf-8"))
    for kind, key, changed in (
        ("forged", "Eve", {}),
        ("expired", "Bob", {"expires": past}),
        ("future", "Bob", {"made": "2999-01-01T00:00:00+00:00"}),
        ("changed", "Bob", {"gates": "0" * 64}),
        ("replayed", "Bob", {"model": "huge"}),
        ("unrecorded", "Bob", {"reason": "said at home, and never written into the chain"}),
    ):
        rewrite(place, approval, KEYS[key], **changed)
        assert place.refused() == {"Bob": kind}
        assert "Bob) does not count: " in place.blocked()


def test_an_approval_of_one_release_is_none_of_another(place: Place) -> None:
    place.approve("Ann")
    place.approve("Bob")
    place.file("Ann", 2).parent.mkdir(parents=True)
    for name in ("Ann", "Bob"):
        shutil.copy(place.file(name), place.file(name, 2))
    assert place.refused("tiny@2") == {"Ann": "replayed", "Bob": "replayed"}
    assert "it was signed for tiny, release" in place.blocked(2)


def test_a_release_that_is_not_as_it_was_sealed_is_not_approved(place: Place) -> None:
    place.approve("Ann")
    place.approve("Bob")
    gates = place.home.releases / "tiny" / place.digests[0] / "gates.json"
    gates.write_bytes(
        gates.read_bytes().replace(b'"status":"waived"', b'"status":"pass"').replace(b"6 steps", b"7 steps")
    )
    done = place.approve("Ann")
    assert (done.exit_code, "gates.json: altered" in done.stderr) == (4, True)
    with pytest.raises(VerificationError, match=r"gates\.json: altered"):
        place.blocked()
    shutil.rmtree(gates.parent)
    with pytest.raises(VerificationError, match="nothing that could be approved"):
        place.blocked()


def test_the_bundle_of_another_release_is_not_taken_for_it(place: Place) -> None:
    other = place.home.releases / "tiny" / ("e" * 64)
    (place.home.releases / "tiny" / place.digests[1]).rename(other)
    record = pick(place.home, "tiny@2")
    with pytest.raises(VerificationError, match=r"manifest\.json: this is the bundle of tiny, release 2ed4"):
        require_approved(place.home, record, "e" * 64)


def test_show_and_a_release_s_json_say_that_approvals_are_needed(place: Place) -> None:
    shown = CliRunner().invoke(main, ["show", "tiny@1", "--home", str(place.home.root)])
    assert "approvals needed   2: loragate approvals tiny@1" in shown.stdout
    told = CliRunner().invoke(main, ["show", "tiny@1", "--json", "--home", str(place.home.root)])
    assert json.loads(told.stdout)["approvals_needed"] == 2


def test_the_file_of_approvers_can_only_take_away(place: Place) -> None:
    place.approve("Ann")
    place.approve("Bob")
    place.name_approvers("Ann", "Wim", "Sam", "Eve")
    assert place.refused() == {"Bob": "revoked"}
    assert "taken out of the approvers since the release was sealed: Bob" in place.blocked()
    done = place.approve("Eve")
    assert (done.exit_code, "was added to the approvers since" in done.stderr) == (5, True)
    place.name_approvers("Ann", "Bob", until="2020-01-01")
    assert place.refused() == {"Ann": "lapsed", "Bob": "lapsed"}
    (place.folder / "approvers.yaml").unlink()
    assert "who may approve now is not known" in place.blocked()
    place.name_approvers("Ann", "Bob")
    assert place.blocked() == ""
    run = place.folder / "run.yaml"
    run.write_text(run.read_text("utf-8").replace('"approvals": 2', '"approvals": 0'), "utf-8")
    place.file("Bob").unlink()
    assert "the run file now says 0; the higher number counts" in place.blocked()


def test_a_release_that_needs_none_is_not_asked_about_unless_the_run_file_asks_now(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    place = Place(tmp_path, home.digests)
    write_key(tmp_path / "Ann", KEYS["Ann"])
    assert place.blocked() == ""
    done = place.approve("Ann")
    assert (done.exit_code, "needs no approvals" in done.stderr) == (2, True)
    write_run(tmp_path, Path("model"), record={"approvals": 1, "approvers": "approvers.yaml"})
    place.name_approvers("Ann")
    assert "sealed without approvers; those of today count" in place.blocked()
    assert place.approve("Ann").exit_code == 0
    assert place.blocked() == ""


def test_more_approvals_than_keys_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_run(tmp_path, tmp_path / "model", record={"approvals": 2, "approvers": "approvers.yaml"})
    write_approvers(tmp_path, ("Ann",))
    done = loragate("release", "run.yaml", cwd=tmp_path)
    assert (done.code, (tmp_path / "home" / "record").exists()) == (2, False)
    assert "record.approvals is 2, but approvers.yaml has only 1 keys" in done.stderr
