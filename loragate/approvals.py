"""Approvals: a person's signed word about exactly one release, and who is asked for it.

    {"approval": {"form":…,"model":…,"release":…,"gates":…,"manifest":…,"decision":…,"key":…,"reason":…,"made":…,
     "expires":…}, "signature": "-----BEGIN SSH SIGNATURE-----…"}       approvals/MODEL/DIGEST/KEY.json, canonical JSON

The signature is over the canonical form (RFC 8785) of the inner object, in OpenSSH's own form. It names the release's
digest and the digest of its gates.json, so it says nothing about any other release, or about other findings.

Which approvers count. How many are needed, and who they are, is sealed with the release. The file of approvers as it is
now can only take away: a key that was taken out or has lapsed counts no more, and one that was added since does not
count for this release. So nobody who can write to that file can approve with a key of his own; new approvers get a
release by releasing again, which finds every artifact made and seals it with them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, get_args

from loragate.bundle import parse_canonical
from loragate.errors import ConfigError
from loragate.refs import canonical, digest_json, digest_text

FORM = "loragate-approval/1"
NAMESPACE = "loragate-approval"
"""What an approval's signature is for: one made for anything else does not count."""
EVENT = "approval"
"""What an approval or a rejection is called in the chain."""
Decision = Literal["approved", "rejected"]
Kind = Literal[
    "unreadable",
    "forged",
    "unknown",
    "revoked",
    "added",
    "lapsed",
    "replayed",
    "changed",
    "future",
    "expired",
    "self-made",
    "unrecorded",
    "missing",
    "twice",
]
"""Why one does not count, in a word; the sentence beside it says the rest."""


@dataclass(frozen=True, slots=True)
class Approver:
    """A person who may approve.

    Attributes:
        key: Public key as `ssh-ed25519 AAAA…`, without a comment.
        until: Last day (UTC) on which the key counts, as YYYY-MM-DD; empty where none is set.
        seals: Names (SHA-256) of keys to seal with that the person holds.
    """

    name: str
    key: str
    until: str = ""
    seals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may approve, and how many of them have to."""

    needed: int
    approvers: tuple[Approver, ...]

    @property
    def digest(self) -> str:
        """Of what it says: comments and order of the file do not matter."""
        return digest_json(
            [self.needed, sorted((asdict(each) for each in self.approvers), key=lambda a: str(a["key"]))]
        )

    def of(self, key: str) -> Approver | None:
        """Who has a key."""
        return next((each for each in self.approvers if each.key == key), None)


@dataclass(frozen=True, slots=True)
class Policies:
    """The approvers of a release: as they were sealed with it (None: nobody was needed), and as the file has them now.

    Attributes:
        unread: Why the file as it is now cannot be read; empty where it can, or none is named.
    """

    sealed: Policy | None
    now: Policy | None
    unread: str = ""

    @property
    def needed(self) -> int:
        """How many approvals: what was sealed, or more where the run file now asks for more."""
        return max((each.needed for each in (self.sealed, self.now) if each is not None), default=0)


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person signs.

    Attributes:
        release: Digest of the release.
        gates: Digest of the gate report, which is the bundle's gates.json.
        manifest: Digest of the bundle's manifest.json, which names every file.
        key: Public key of the person.
        made: When, in UTC.
        expires: When it counts no more, in UTC; empty for a rejection that stands until it is withdrawn.
    """

    form: str
    model: str
    release: str
    gates: str
    manifest: str
    decision: str
    key: str
    reason: str
    made: str
    expires: str

    @property
    def content(self) -> bytes:
        """The bytes that are signed."""
        return canonical(asdict(self))

    def file(self, signature: str) -> bytes:
        """The file that holds it."""
        return canonical({"approval": asdict(self), "signature": signature})


@dataclass(frozen=True, slots=True)
class ApprovalFile:
    """An approval as it was found on disk.

    Attributes:
        file: Its name, as seen from the home.
        digest: Of its bytes.
        approval: What it says; None where it cannot be read.
        unreadable: Why it cannot be read; empty where it can.
        forged: Why the signature is not that of the key it names; empty where it is.
    """

    file: str
    digest: str
    approval: Approval | None = None
    unreadable: str = ""
    forged: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the chain has last of one key about one release: the decision, and the digest of its file."""

    decision: str
    digest: str


@dataclass(frozen=True, slots=True)
class Counted:
    """One that counts: who, until when, and the reason given."""

    name: str
    expires: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """One that does not count, and why."""

    kind: Kind
    who: str
    file: str
    why: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a release stands with those who have to approve it.

    Attributes:
        counted: Approvals that count.
        rejected: Rejections that stand; one is enough to block.
        refused: What was found and does not count.
        waiting: Names of those who can still approve.
        notes: What else must be known: how the approvers differ from those that were sealed.
    """

    needed: int
    counted: tuple[Counted, ...] = ()
    rejected: tuple[Counted, ...] = ()
    refused: tuple[Refused, ...] = ()
    waiting: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def granted(self) -> bool:
        """Whether it may be promoted."""
        return not self.rejected and len(self.counted) >= self.needed

    @property
    def told(self) -> dict[str, object]:
        """What `loragate approvals --json` prints."""
        return {"granted": self.granted, **asdict(self)}

    def why_blocked(self, name: str) -> str:
        """Say why a release is blocked and what to do; nothing where it is not."""
        if self.granted:
            return ""
        said = [f"{name}: rejected by {each.name}: {each.reason or 'no reason given'}" for each in self.rejected]
        names = ", ".join(each.name for each in self.counted)
        count = f"{len(self.counted)} {'counts' if len(self.counted) == 1 else 'count'}"
        asked = f"{self.needed} approval{'s' if self.needed > 1 else ''} needed, {count}"
        said.append(f"{'' if self.rejected else f'{name}: '}{asked}{f' ({names})' if names else ''}")
        said += [f"{each.file} ({each.who}) does not count: {each.why}" for each in self.refused]
        said += [*self.notes]
        if self.rejected:
            said.append(f"whoever rejected it withdraws that by: {approve_command(name)}")
        elif self.waiting:
            said.append(f"to approve, {' or '.join(self.waiting)}: {approve_command(name)}")
        return "; ".join(said)


def approve_command(name: str) -> str:
    """The command that approves a release."""
    return f"loragate approve {name} --key ~/.ssh/id_ed25519"


def key_name(key: str) -> str:
    """Name an approver's public key: the SHA-256 of its text without a comment."""
    return digest_text(key)


def bare(key: str) -> str:
    """A public key without its comment."""
    return " ".join(key.split()[:2])


def read_file(text: str) -> tuple[Approval, str]:
    """Read an approval and its signature, which is not checked here.

    Raises:
        VerificationError: It is not spelled as it was written.
        ValueError: It is another thing than an approval.
    """
    value = parse_canonical("it", text)
    if not isinstance(value, dict) or set(value) != {"approval", "signature"}:
        raise ValueError("it is not an object of an approval and a signature")
    found, signature, names = value["approval"], value["signature"], {field.name for field in fields(Approval)}
    texts = isinstance(found, dict) and set(found) == names and all(isinstance(each, str) for each in found.values())
    if not texts or not isinstance(signature, str):
        raise ValueError(f"its approval is not an object of the texts {', '.join(sorted(names))} and nothing else")
    approval = Approval(**found)
    if approval.form != FORM or approval.decision not in get_args(Decision):
        raise ValueError(f"it is no approval of the form {FORM}")
    moment(approval.made)
    if approval.expires or approval.decision == "approved":
        moment(approval.expires)
    return approval, signature


def moment(text: str) -> datetime:
    """A time in UTC.

    Raises:
        ValueError: It is none, or does not say where on earth.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time") from None
    if found.tzinfo is None:
        raise ValueError(f"{text!r} is a time without a zone")
    return found.astimezone(UTC)


def end_of(text: str, now: datetime) -> datetime:
    """When something ends that was written as a number of days (30d) or as its last day (YYYY-MM-DD, UTC).

    Raises:
        ConfigError: It is neither, or past.
    """
    try:
        days = re.fullmatch(r"([1-9]\d{0,3})d", text)
        end = now + timedelta(days=int(days[1])) if days else _day_after(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"--expires {text}: wanted a number of days as 30d, or the last day as YYYY-MM-DD") from None
    if end <= now:
        raise ConfigError(f"--expires {text}: that is past; today is {now.date()} (UTC)")
    return end


def _day_after(text: str) -> datetime:
    return datetime.combine(date.fromisoformat(text), time(), UTC) + timedelta(days=1)


def recorded(events: Sequence[Mapping[str, object]], model: str, release: str) -> dict[str, Recorded]:
    """What the chain has last of each key, by the key's name."""
    mine = (each for each in events if (each.get("model"), each.get("release")) == (model, release))
    return {str(each["key"]): Recorded(str(each["decision"]), str(each["file"])) for each in mine}
