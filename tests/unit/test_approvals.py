"""Approvals: exactly this release, by an approver of today and of then, until a day; anything else does not count."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from signers import new_key

from checks.approvals import SKEW, Case, judge
from loragate.approvals import (
    FORM,
    Approval,
    ApprovalFile,
    Approver,
    Kind,
    Policies,
    Policy,
    Recorded,
    Standing,
    end_of,
    key_name,
    read_file,
    recorded,
)
from loragate.approvers import read_policy
from loragate.config import load
from loragate.errors import ConfigError, VerificationError

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
ANN, BOB, CARL, EVE = (new_key().public for _ in range(4))
SEALER = "5" * 64
RELEASE, GATES, MANIFEST = "a" * 64, "b" * 64, "c" * 64
TEAM = (Approver("Ann", ANN), Approver("Bob", BOB), Approver("Carl", CARL))
SEALED = Policy(2, TEAM)
MAKERS = {SEALER: "holds the key that sealed this release"}


def at(**ahead: float) -> str:
    return (NOW + timedelta(**ahead)).isoformat()


def said(key: str, **changed: str) -> ApprovalFile:
    """An approval of the release; its digest is unlike that of any other."""
    approval = Approval(FORM, "tiny", RELEASE, GATES, MANIFEST, "approved", key, "", at(hours=-1), at(days=30))
    approval = replace(approval, **changed)
    return ApprovalFile(f"{key_name(key)}.json", key_name(str(approval)), approval)


def no(key: str, expires: str = "", **changed: str) -> ApprovalFile:
    return said(key, decision="rejected", expires=expires, **changed)


def policy(*approvers: Approver, needed: int = 2) -> Policy:
    return Policy(needed, approvers)


def known(files: Sequence[ApprovalFile]) -> dict[str, Recorded]:
    """What the chain has where every file was written by `loragate approve`."""
    signed = [(each.approval, each.digest) for each in files if each.approval is not None]
    return {key_name(approval.key): Recorded(approval.decision, digest) for approval, digest in signed}


@dataclass(frozen=True, slots=True)
class Row:
    """Files and approvers, and what has to come of them: who counts, who rejects, which kinds are refused and why."""

    name: str
    files: tuple[ApprovalFile, ...]
    counted: tuple[str, ...]
    refused: tuple[Kind, ...] = ()
    why: str = ""
    rejected: tuple[str, ...] = ()
    sealed: Policy | None = SEALED
    now: Policy | None = SEALED
    makers: Mapping[str, str] = field(default_factory=lambda: MAKERS)
    chain: Mapping[str, Recorded] | None = None


A, B, C = said(ANN), said(BOB), said(CARL)
GONE = {key_name(BOB): Recorded("rejected", "9" * 64)}
SEALS = (replace(TEAM[0], seals=(SEALER,)), *TEAM[1:])
ROWS = [
    Row("two of three", (A, B), ("Ann", "Bob")),
    Row("three of two needed", (A, B, C), ("Ann", "Bob", "Carl")),
    Row("nobody yet", (), ()),
    Row("one is not two", (A,), ("Ann",)),
    Row("one key twice is one", (A, A), ("Ann",), ("twice",), "one key is one approver (Ann)"),
    Row("a stranger's", (A, said(EVE)), ("Ann",), ("unknown",), f"its key {key_name(EVE)[:12]} is not among the"),
    Row(
        "forged", (A, replace(B, forged="altered after signing")), ("Ann",), ("forged",), "does not hold: altered after"
    ),
    Row("not to be read", (A, ApprovalFile("x", "d", unreadable="it is cut")), ("Ann",), ("unreadable",), "it is cut"),
    Row("expired", (A, said(BOB, expires=at(seconds=-1))), ("Ann",), ("expired",), "it expired at 2026-11-27T11:59:59"),
    Row("expires this second", (A, said(BOB, expires=at())), ("Ann",), ("expired",), "it expired at"),
    Row("a second is left", (A, said(BOB, expires=at(seconds=1))), ("Ann", "Bob")),
    Row("from the future", (A, said(BOB, made=at(minutes=6))), ("Ann",), ("future",), "which is still to come"),
    Row("a clock that is ahead", (A, said(BOB, made=(NOW + SKEW).isoformat())), ("Ann", "Bob")),
    Row(
        "another release's", (A, said(BOB, release="d" * 64)), ("Ann",), ("replayed",), "signed for tiny, release ddddd"
    ),
    Row("another model's", (A, said(BOB, model="huge")), ("Ann",), ("replayed",), "signed for huge, release aaaaaaaaa"),
    Row("other gates", (A, said(BOB, gates="e" * 64)), ("Ann",), ("changed",), "gates.json of digest eeeeeeeeeeee"),
    Row("another manifest", (A, said(BOB, manifest="e" * 64)), ("Ann",), ("changed",), "manifest.json of digest eeeee"),
    Row("the sealer's", (A, B), ("Bob",), ("self-made",), "Ann holds the key that sealed", sealed=policy(*SEALS)),
    Row("the sealer's, told later", (A, B), ("Bob",), ("self-made",), "another pair of eyes", now=policy(*SEALS)),
    Row("by the key that sealed", (said(SEALER),), (), ("self-made",), "its key holds the key that sealed"),
    Row("a waiver's key", (A, B), ("Bob",), ("self-made",), "Ann waived it", makers={ANN: "waived it"}),
    Row(
        "a waiver's signer with two keys",
        (A, B),
        ("Ann",),
        ("self-made",),
        "Bob waived it",
        makers={"Bob": "waived it"},
    ),
    Row(
        "taken out since", (A, B), ("Ann",), ("revoked",), "the key of Bob was taken out", now=policy(TEAM[0], TEAM[2])
    ),
    Row("added since", (A, B), ("Ann",), ("added",), "the key of Bob was added", sealed=policy(TEAM[0], TEAM[2])),
    Row(
        "lapsed",
        (A, B),
        ("Ann",),
        ("lapsed",),
        "counted until 2026-11-26",
        now=policy(TEAM[0], Approver("Bob", BOB, "2026-11-26")),
    ),
    Row(
        "lapsed by the sealed list",
        (A, B),
        ("Ann",),
        ("lapsed",),
        "until 2026-11-26",
        sealed=policy(TEAM[0], Approver("Bob", BOB, "2026-11-26")),
    ),
    Row(
        "a later last day given since",
        (A, B),
        ("Ann",),
        ("lapsed",),
        "until 2026-11-26",
        sealed=policy(TEAM[0], Approver("Bob", BOB, "2026-11-26")),
        now=policy(TEAM[0], Approver("Bob", BOB, "2027-11-26")),
    ),
    Row("on its last day", (A, B), ("Ann", "Bob"), now=policy(TEAM[0], Approver("Bob", BOB, "2026-11-27"))),
    Row("fewer needed now", (A,), ("Ann",), now=policy(*TEAM, needed=1)),
    Row("sealed without approvers, asked for now", (A, B), ("Ann", "Bob"), sealed=None),
    Row("approvers cannot be read now", (A, B), (), now=None),
    Row("not in the chain", (A, B), ("Ann",), ("unrecorded",), "the chain does not have it; Bob", chain=known([A])),
    Row(
        "an older one put back",
        (A, B),
        ("Ann",),
        ("unrecorded",),
        "another file of Bob as the last",
        rejected=("Bob",),
        chain=known([A]) | GONE,
    ),
    Row("rejected", (A, B, no(CARL)), ("Ann", "Bob"), rejected=("Carl",)),
    Row(
        "a rejection whose file is gone",
        (A, C),
        ("Ann", "Carl"),
        ("missing",),
        "file is gone",
        rejected=("Bob",),
        chain=known([A, C]) | GONE,
    ),
    Row("an approval whose file is gone", (A,), ("Ann",), ("missing",), "gone", chain=known([A, B])),
    Row(
        "a rejection that ended",
        (
            A,
            B,
            no(CARL, expires=at(days=-1)),
        ),
        ("Ann", "Bob"),
        ("expired",),
        "it expired",
    ),
    Row("a stranger's rejection", (A, B, no(EVE)), ("Ann", "Bob"), ("unknown",), "is not among the approvers"),
    Row(
        "a rejection of another release",
        (A, B, no(CARL, release="d" * 64)),
        ("Ann", "Bob"),
        ("replayed",),
        "signed for",
    ),
    Row("a forged rejection", (A, B, replace(no(CARL), forged="no")), ("Ann", "Bob"), ("forged",), "does not hold"),
    Row("who made it may reject it", (A, no(BOB)), ("Ann",), rejected=("Bob",), makers={BOB: "waived it"}),
    Row("who was added since may reject it", (A, no(BOB)), ("Ann",), rejected=("Bob",), sealed=policy(TEAM[0])),
]


def judged(row: Row) -> Standing:
    chain = known(row.files) if row.chain is None else row.chain
    case = Case("tiny", RELEASE, GATES, MANIFEST, NOW, row.makers, chain)
    return judge(case, Policies(row.sealed, row.now), row.files)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_counts_is_an_approver_s_own_word_about_this_release_and_the_rest_says_why_not(row: Row) -> None:
    standing = judged(row)
    assert tuple(each.name for each in standing.counted) == row.counted
    assert tuple(each.name for each in standing.rejected) == row.rejected
    assert tuple(each.kind for each in standing.refused) == row.refused
    assert row.why in "; ".join(each.why for each in standing.refused)
    assert standing.granted == (len(row.counted) >= 2 and not row.rejected)
    blocked = standing.why_blocked("tiny@1")
    assert (blocked == "") == standing.granted
    assert standing.granted or all(each.why in blocked for each in standing.refused)


def test_a_release_that_needs_none_is_granted_whatever_lies_there() -> None:
    assert judge(Case("tiny", RELEASE, GATES, MANIFEST, NOW, {}, {}), Policies(None, None), [no(ANN)]).granted


def test_a_block_says_who_counts_who_is_waited_for_and_the_command() -> None:
    expired = said(BOB, expires=at(days=-2))
    told = judged(Row("", (A, expired), ("Ann",))).why_blocked("tiny@3")
    assert told == (
        f"tiny@3: 2 approvals needed, 1 counts (Ann); {expired.file} (Bob) does not count: it expired at "
        "2026-11-25T12:00:00+00:00 (now: 2026-11-27T12:00:00+00:00); to approve, Bob or Carl: "
        "loragate approve tiny@3 --key ~/.ssh/id_ed25519"
    )
    assert "rejected by Bob: too slow; 2 approvals needed" in judged(
        Row("", (no(BOB, reason="too slow"),), ())
    ).why_blocked("tiny@3")


def test_what_changed_about_the_approvers_is_told_and_so_is_that_too_few_are_left() -> None:
    notes = judged(Row("", (A,), (), now=policy(TEAM[0], Approver("Eve", EVE), needed=1))).notes
    again = "they do not count for it; release again to have them sealed with it"
    assert notes == (
        "the release was sealed with 2 needed, the run file now says 1; the higher number counts",
        "taken out of the approvers since the release was sealed: Bob, Carl",
        f"added to the approvers since the release was sealed: Eve ({again})",
        "only 1 keys can approve it: name more approvers, and release again",
    )


def test_the_last_event_of_a_key_is_what_the_chain_has_of_it() -> None:
    event = {"model": "tiny", "release": RELEASE, "key": "k", "decision": "approved", "file": "1"}
    lines = [event, event | {"decision": "rejected", "file": "2"}, event | {"release": "x", "file": "3"}]
    assert recorded(lines, "tiny", RELEASE) == {"k": Recorded("rejected", "2")}


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("30d", "2026-12-27T12:00:00+00:00"),
        ("2026-11-27", "2026-11-28T00:00:00+00:00"),
        ("2027-01-31", "2027-02-01T00:00:00+00:00"),
    ],
)
def test_an_end_is_a_number_of_days_or_the_end_of_a_day(text: str, end: str) -> None:
    assert end_of(text, NOW).isoformat() == end


@pytest.mark.parametrize("text", ["soon", "0d", "-1d", "30", "", "2026-11-26", "2026-13-01", "99999d", "9999-12-31"])
def test_another_end_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--expires {text}: "):
        end_of(text, NOW)


WHOLE = A.approval or Approval(*[""] * 10)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON as it was written"),
        (WHOLE.file("s").decode() + "\n", "canonical"),
        ("[]", "not an object of an approval and a signature"),
        (replace(WHOLE, form="loragate-approval/2").file("s").decode(), "no approval of the form"),
        (replace(WHOLE, decision="maybe").file("s").decode(), "no approval of the form"),
        (replace(WHOLE, made="today").file("s").decode(), "'today' is not a time"),
        (replace(WHOLE, expires="2026-12-01T00:00:00").file("s").decode(), "a time without a zone"),
        (replace(WHOLE, expires="").file("s").decode(), "'' is not a time"),
        (WHOLE.file("s").decode().replace('"reason":""', '"reason":1'), "not an object of the texts"),
    ],
    ids=["cut", "spelling", "list", "form", "decision", "made", "zone", "no end", "number"],
)
def test_what_is_no_approval_is_not_read_as_one(text: str, why: str) -> None:
    with pytest.raises((ValueError, VerificationError), match=why):
        read_file(text)
    assert read_file(WHOLE.file("s").decode()) == (WHOLE, "s")


def run_with(folder: Path, approvals: int, entries: object) -> Path:
    (folder / "approvers.yaml").write_text(entries if isinstance(entries, str) else json.dumps(entries), "utf-8")
    run = {
        "model": "tiny",
        "base_model": {"source": "org/base"},
        "data": {"train": ["a.jsonl"]},
        "record": {"approvals": approvals, "approvers": "approvers.yaml"},
    }
    (folder / "run.yaml").write_text(json.dumps(run), "utf-8")
    return folder / "run.yaml"


def test_approvers_are_read_from_yaml_with_comments_and_dates(tmp_path: Path) -> None:
    text = f"# the team\n- {{name: Ann, key: {ANN} ann@laptop}}\n- name: Bob\n  key: {BOB}\n  until: 2027-01-31\n"
    policy = read_policy(load(run_with(tmp_path, 2, text)))
    assert policy == Policy(2, (Approver("Ann", ANN), Approver("Bob", BOB, "2027-01-31")))
    assert policy.digest == Policy(2, policy.approvers[::-1]).digest != Policy(1, policy.approvers).digest
    assert read_policy(load(run_with(tmp_path, 0, "nobody reads it"))) is None


@pytest.mark.parametrize(
    ("approvals", "entries", "why"),
    [
        (2, [{"name": "Ann", "key": ANN}], "record.approvals is 2, but approvers.yaml has only 1 keys"),
        (1, [{"name": "Ann", "key": ANN}, {"name": "Bob", "key": f"{ANN} b"}], "Ann and Bob have the same key"),
        (1, [{"name": "Ann", "key": ANN}, {"name": "Ann", "key": BOB}], "Ann is named twice"),
        (1, [{"name": "Ann", "key": "ssh-rsa AAAA"}], r"0\.key: found \"ssh-rsa AAAA\""),
        (1, [{"name": "Ann", "key": ANN, "till": "x"}], r"0\.till: unknown key"),
        (1, [{"name": "Ann", "key": ANN, "until": "soon"}], "Ann: until: found 'soon'"),
        (1, [{"name": " Ann", "key": ANN}], "' Ann' is not a name"),
        (1, {"name": "Ann"}, "wanted a list of approvers"),
        (1, "- [", "not YAML"),
    ],
)
def test_approvers_that_cannot_work_are_refused(tmp_path: Path, approvals: int, entries: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_policy(load(run_with(tmp_path, approvals, entries)))


def test_approvals_without_a_file_of_approvers_are_refused(tmp_path: Path) -> None:
    path = run_with(tmp_path, 1, [])
    with pytest.raises(ConfigError, match=r"record\.approvals is 1, but record\.approvers names no file"):
        load(path, ["record.approvers=null"])
    (tmp_path / "approvers.yaml").unlink()
    with pytest.raises(ConfigError, match=r"record\.approvers: approvers\.yaml: cannot be read"):
        read_policy(load(path))
