"""Verifying a release of a home: its bundle, its place in the chain, and the journal that the chain vouches for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loragate import bundle
from loragate.approvals import EVENT, recorded
from loragate.chain import Head, Link, events, read_chain
from loragate.errors import ConfigError, VerificationError
from loragate.refs import digest_bytes, digest_file

if TYPE_CHECKING:  # a bundle is verified without what reading a home takes
    from loragate.home import Home
    from loragate.promotion_log import PromotionLog
    from loragate.record import AttemptRecord

DIGEST_TAG, MANIFEST_TAG, SIGNATURE_TAG = "loragate.digest", "loragate.manifest", "loragate.signature"
CHAIN_TAG = "loragate.chain"
"""Tags of a version in MLflow that say what the bundle and the chain must be, outside of the home."""
PROMOTED = ("promotion", "rollback")
"""Events of the chain that say what a release became."""
Trust = Literal["given", "home", "bundle"]
STRENGTH: Mapping[Trust, str] = {
    "given": "a key that you named: nobody without its private half has altered a byte",
    "home": "a key that this home keeps: nobody without its private half has altered a byte; whoever can write to the "
    "home can read its own key there, or put another one; --key PUB checks against yours",
    "bundle": "the key that the bundle itself brings: its files belong together, and whoever made it may be anybody; "
    "--key PUB checks who",
}
"""What a good signature proves, by where the key is known from."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle in which nothing is wrong, and how much that says.

    Attributes:
        checked: What is in the bundle.
        chain: The events of the home; None where only a bundle was looked at.
    """

    folder: str
    release: str
    digest: str
    trust: Trust
    checked: bundle.Checked
    chain: tuple[Link, ...] | None = None

    @property
    def files(self) -> int:
        """How many files the bundle has."""
        return len(self.checked.digests)

    @property
    def told(self) -> dict[str, object]:
        """What `verify --json` prints."""
        return {
            "verified": True,
            "folder": self.folder,
            "release": self.release,
            "digest": self.digest,
            "manifest": self.checked.digests[bundle.MANIFEST],
            "files": self.files,
            "key": self.checked.key,
            "trust": self.trust,
            "links": None if self.chain is None else len(self.chain),
            "proves": STRENGTH[self.trust],
        }


def sealed_folder(home: "Home", record: "AttemptRecord") -> Path:
    """Where a release's bundle lies.

    Raises:
        ConfigError: The attempt released nothing.
        VerificationError: It did, and the bundle is not there.
    """
    closed = record.closed
    if closed is None or closed.outcome != "released" or closed.digest is None:
        raise ConfigError(f"attempt {record.opened.attempt} released nothing (its end is: {record.outcome})")
    folder = home.releases / record.opened.model / closed.digest
    if not folder.is_dir():
        why = "it was taken away, or was released before releases were sealed"
        raise VerificationError(f"{folder}: missing; {record.release} has no sealed bundle here: {why}")
    return folder


def verify_bundle(folder: Path, unseal: bundle.Unseal, known: Mapping[str, str], given: bool) -> Verified:
    """Verify a bundle wherever it lies; `known` are the keys that were given, or else the home's.

    Raises:
        VerificationError: The first thing wrong, beginning with the folder.
    """
    checked = checked_bundle(folder, unseal)
    trust: Trust = "given" if given else "home" if checked.key in known else "bundle"
    said = checked.manifest
    return Verified(str(folder), str(said.get("model")), str(said.get("release")), trust, checked)


def checked_bundle(folder: Path, unseal: bundle.Unseal) -> bundle.Checked:
    """Check a bundle; the message of what is wrong begins with its folder.

    Raises:
        VerificationError: Something is.
    """
    try:
        return bundle.check(folder, unseal)
    except VerificationError as error:
        raise VerificationError(f"{folder}: {error}") from None


def verify_release(
    home: "Home",
    record: "AttemptRecord",
    unseal: bundle.Unseal,
    open_head: Callable[[str], bytes],
    given: bool,
    *,
    approvals: bool = True,
) -> Verified:
    """Verify a release of a home: bundle, chain, journal, and what was signed about it since unless it is left out.

    Raises:
        ConfigError: The attempt released nothing.
        VerificationError: The first thing wrong.
    """
    folder = sealed_folder(home, record)
    checked = checked_bundle(folder, unseal)
    closed = record.closed
    assert closed is not None
    said = (checked.manifest.get("model"), checked.manifest.get("release"))
    if said != (record.opened.model, closed.digest):
        raise VerificationError(f"{folder}: {bundle.MANIFEST}: this is the bundle of {said[0]}, release {said[1]}")
    links = read_chain(home.chain, open_head)
    chain = home.chain / "chain.jsonl"
    _require_anchor(links, checked.manifest.get("chain"), str(chain))
    _require_release(links, checked, str(closed.digest), str(chain))
    _require_journal(links, home, record, str(chain))
    _require_promotions(links, home.promotions(record.opened.model), record.opened.model, str(chain))
    if approvals:
        _require_approvals(links, home, str(said[0]), str(said[1]), str(chain))
    trust: Trust = "given" if given else "home"
    name = record.release or record.opened.model
    return Verified(str(folder), name, str(closed.digest), trust, checked, links)


def _require_anchor(links: Sequence[Link], head: object, chain: str) -> None:
    """The chain goes on from where it was when the bundle was sealed: an older one was not put in its place."""
    assert isinstance(head, dict)
    length = int(head["length"])
    if length > len(links) or (length and digest_bytes(links[length - 1].line) != head["hash"]):
        raise VerificationError(f"{chain}: not the chain that the release was sealed into: line {length} is another")


def _require_release(links: Sequence[Link], checked: bundle.Checked, digest: str, chain: str) -> None:
    sealed = [fields for fields in events(links, "release") if fields.get("release") == digest]
    if not sealed:
        raise VerificationError(f"{chain}: has no event of release {digest[:12]}")
    files = {"manifest": bundle.MANIFEST, "signature": bundle.SIGNATURE}
    for name, file in files.items():
        if checked.digests[file] not in [fields.get(name) for fields in sealed]:
            raise VerificationError(f"{file}: not the one that the chain has for release {digest[:12]}")


def _require_journal(links: Sequence[Link], home: "Home", record: "AttemptRecord", chain: str) -> None:
    attempt = record.opened.attempt
    closed = [fields for fields in events(links, "closed") if fields.get("attempt") == attempt]
    if not closed:
        raise VerificationError(f"{chain}: has no event of the end of attempt {attempt}")
    path = home.journal(attempt).path
    if closed[-1].get("journal") != digest_file(path):
        raise VerificationError(f"{path}: altered since the attempt ended; the chain has another digest of it")


def _require_promotions(links: Sequence[Link], log: "PromotionLog", model: str, chain: str) -> None:
    """What became of each release is the same by the promotion log and by the chain."""
    from loragate.promotion import promotions  # not above: a bundle is verified without what reading a home takes

    content = log.path.read_bytes() if log.path.is_file() else b""
    told = [fields for event in PROMOTED for fields in events(links, event) if fields.get("model") == model]
    for fields in told:
        upto = fields["log"]
        assert isinstance(upto, dict)
        if digest_bytes(content[: upto["size"]]) != upto["sha256"]:
            what = f"{fields['kind']} of {model}@{fields['version']}"
            raise VerificationError(f"{log.path}: altered; the chain has another digest of it up to the {what}")
    known = {fields["promotion"] for fields in told}
    for each in promotions(log.lines()):
        if each.outcome in ("champion", "candidate", "lost") and each.intent.id not in known:
            raise VerificationError(f"{chain}: has no event of the {each.intent.kind} of {each.name}")


def head_tag(head: Head) -> str:
    """How a tag in MLflow tells where a chain ends."""
    return f"{head.length}:{head.hash}"


def require_tags(tags: Mapping[str, str], of_model: Mapping[str, str], verified: Verified, what: str) -> None:
    """Hold the tags of a version and of its model in MLflow against the bundle and the chain that they were made from.

    The version's tell where the chain ended when the release was sealed, the model's where it did after a promotion.

    Raises:
        VerificationError: The first tag that says something else.
    """
    digests = verified.checked.digests
    expected = {
        DIGEST_TAG: verified.digest,
        MANIFEST_TAG: digests[bundle.MANIFEST],
        SIGNATURE_TAG: digests[bundle.SIGNATURE],
    }
    for tag, value in expected.items():
        if tags.get(tag) != value:
            raise VerificationError(f"{what}: the tag {tag} in MLflow says {tags.get(tag)!r}, the bundle {value!r}")
    heads = {f"{link.number}:{digest_bytes(link.line)}" for link in verified.chain or ()}
    for name, told in ((what, tags.get(CHAIN_TAG)), (what.partition("@")[0], of_model.get(CHAIN_TAG))):
        if told not in heads:
            raise VerificationError(
                f"{name}: the tag {CHAIN_TAG} in MLflow says {told!r}, and the chain of this home has no such line: "
                "the tag was altered, or an older chain was put in the place of the one that was there then"
            )


def _require_approvals(links: Sequence[Link], home: "Home", model: str, digest: str, chain: str) -> None:
    """The last approval or rejection of each key lies where it was written, as it was written."""
    for key, last in recorded(events(links, EVENT), model, digest).items():
        path = home.approvals / model / digest / f"{key}.json"
        if not path.is_file():
            raise VerificationError(f"{path}: missing; {chain} has that it was {last.decision} with this key")
        if digest_file(path) != last.digest:
            raise VerificationError(f"{path}: altered, or older than what {chain} has last of this key")
