"""Verifying a release of a home: its bundle, its place in the chain, and the journal that the chain vouches for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loragate import bundle
from loragate.approvals import EVENT, recorded
from loragate.chain import Link, events, read_chain
from loragate.errors import ConfigError, VerificationError
from loragate.refs import digest_bytes, digest_file

if TYPE_CHECKING:  # a bundle is verified without what reading a home takes
    from loragate.home import Home
    from loragate.record import AttemptRecord

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
        links: How many events the chain has; None where only a bundle was looked at.
    """

    folder: str
    release: str
    digest: str
    files: int
    key: str
    trust: Trust
    links: int | None = None

    @property
    def told(self) -> dict[str, object]:
        """What `verify --json` prints."""
        return {"verified": True, **asdict(self), "proves": STRENGTH[self.trust]}


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
    return Verified(
        str(folder), str(said.get("model")), str(said.get("release")), len(checked.digests), checked.key, trust
    )


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
    if approvals:
        _require_approvals(links, home, str(said[0]), str(said[1]), str(chain))
    trust: Trust = "given" if given else "home"
    name = record.release or record.opened.model
    return Verified(str(folder), name, str(closed.digest), len(checked.digests), checked.key, trust, len(links))


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


def _require_approvals(links: Sequence[Link], home: "Home", model: str, digest: str, chain: str) -> None:
    """The last approval or rejection of each key lies where it was written, as it was written."""
    for key, last in recorded(events(links, EVENT), model, digest).items():
        path = home.approvals / model / digest / f"{key}.json"
        if not path.is_file():
            raise VerificationError(f"{path}: missing; {chain} has that it was {last.decision} with this key")
        if digest_file(path) != last.digest:
            raise VerificationError(f"{path}: altered, or older than what {chain} has last of this key")
