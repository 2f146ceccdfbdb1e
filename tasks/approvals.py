"""Approvals of a release: read those that were signed, sign another, and require as many as were sealed with it.

`require_approved` is what a promotion calls. What it goes by is signed: how many approvals and whose, by the bundle;
each approval, by its own key; which of a key is the last one, by the chain.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from checks import approvals as checks
from loragate import bundle
from loragate.approvals import (
    EVENT,
    FORM,
    NAMESPACE,
    Approval,
    ApprovalFile,
    Kind,
    Policies,
    Policy,
    Standing,
    end_of,
    key_name,
    read_file,
    recorded,
)
from loragate.approvers import read_approvers
from loragate.chain import events, read_chain
from loragate.config import Config, RunFile, load
from loragate.errors import BlockedError, ConfigError, VerificationError
from loragate.home import Home
from loragate.record import AttemptRecord, read_as
from loragate.refs import digest_bytes
from loragate.store import locked, write_atomically
from loragate.verification import sealed_folder, verify_release
from tasks.release_keys import open_chain, readers

if TYPE_CHECKING:
    from loragate.engines.signing import PrivateKey

GATES, RECORD = "gates.json", "record.json"
OWN: frozenset[Kind] = frozenset({"self-made", "added"})
"""Why an approver's own word does not count for a release, while it would against it."""
DAYS = "30d"
"""How long an approval counts where nothing is said (own choice: after a month somebody has to look again)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A sealed release that is to be approved, and what has been signed about it.

    Attributes:
        name: What a command calls it.
        folder: Its bundle.
        gates: Each gate's status and what was waived, in the road's order.
        case: What an approval of it has to name.
        run: The run file as it is now, or as the release was made with where that cannot be read.
    """

    name: str
    folder: Path
    gates: tuple[tuple[str, str, tuple[str, ...]], ...]
    case: checks.Case
    policies: Policies
    files: tuple[ApprovalFile, ...]
    run: RunFile

    @property
    def standing(self) -> Standing:
        """Where it stands now."""
        return checks.judge(self.case, self.policies, self.files)

    @property
    def lines(self) -> tuple[str, ...]:
        """What is signed, a line each."""
        case = self.case
        told = [f"release    {self.name}", f"digest     {case.release}", f"gates      {case.gates} (gates.json)"]
        told += [f"manifest   {case.manifest}", f"bundle     {self.folder}"]
        for gate, status, waived in self.gates:
            told += [f"  {gate + ' gate':<16} {status}", *(f"    waived: {each}" for each in waived)]
        return tuple(told)


@dataclass(frozen=True, slots=True)
class Wish:
    """What an approver says; `expires` as a number of days or a last day, empty for the default."""

    rejects: bool
    reason: str
    expires: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A decision that was signed: where it lies, what it says, and where the release stands with it."""

    file: Path
    approval: Approval
    standing: Standing


def require_approved(home: Home, record: AttemptRecord, digest: str, config: Path | None = None) -> Standing | None:
    """Return only where a release has the approvals that it needs; None where it needs none.

    Args:
        record: Of the attempt that made it; it may still be open.
        digest: Of the release.
        config: The run file, where it has moved since.

    Raises:
        BlockedError: It has not; the message says what is missing and what to do.
        VerificationError: The bundle or the chain was altered, or the bundle is gone.
    """
    found = asked(home, record, digest, config)
    if found is None:
        return None
    standing = found.standing
    if not standing.granted:
        raise BlockedError(standing.why_blocked(found.name))
    return standing


def why_not_approved(home: Home, record: AttemptRecord, digest: str) -> str:
    """Say why a release may not be promoted; nothing where it may. For who writes the reason down instead of ending.

    Raises:
        VerificationError: As `require_approved`.
    """
    try:
        require_approved(home, record, digest)
    except BlockedError as error:
        return str(error)
    return ""


def asked(home: Home, record: AttemptRecord, digest: str, config: Path | None = None) -> Asked | None:
    """Read a sealed release and what was signed about it; None where nobody has to approve it.

    Raises:
        VerificationError: The bundle or the chain was altered, or the bundle is gone.
    """
    model, folder, run = record.opened.model, home.releases / record.opened.model / digest, run_now(record, config)
    unseal, open_head = readers(home)
    links = read_chain(home.chain, open_head, to_go_on=True)
    if not folder.is_dir():
        sealed_once = any(fields.get("release") == digest for fields in events(links, "release"))
        if not sealed_once and not run.config.record.approvals and record.approvals is None:
            return None
        raise VerificationError(f"{folder}: missing, so there is nothing that could be approved; release again")
    try:
        names = (RECORD, GATES, bundle.MANIFEST)
        texts, signed = bundle.read_signed(folder, names, unseal)
        _require_release(json.loads(texts[bundle.MANIFEST]), model, digest)
    except VerificationError as error:
        raise VerificationError(f"{folder}: {error}") from None
    sealed = json.loads(texts[RECORD]).get("approvals")
    policies = _policies(read_as(Policy, sealed) if sealed else None, run)
    if not policies.needed:
        return None
    gates = json.loads(texts[GATES])
    case = checks.Case(
        model,
        digest,
        signed.files[GATES],
        signed.files[bundle.MANIFEST],
        datetime.now(UTC),
        makers(gates, signed.key),
        recorded(events(links, EVENT), model, digest),
    )
    statuses = tuple((gate["gate"], gate["status"], _waived(gate)) for gate in gates)
    name = record.release or record.opened.attempt
    return Asked(name, folder, statuses, case, policies, read_approvals(home, model, digest), run)


def _require_release(manifest: Mapping[str, object], model: str, digest: str) -> None:
    """Refuse the bundle of another release: fewer may have to approve that one."""
    said = (manifest.get("model"), manifest.get("release"))
    if said != (model, digest):
        raise VerificationError(f"{bundle.MANIFEST}: this is the bundle of {said[0]}, release {said[1]}")


def run_now(record: AttemptRecord, config: Path | None = None) -> RunFile:
    """The run file as it is now; as the attempt had it where it cannot be read, or names no approvers any more.

    Raises:
        ConfigError: One is named, and cannot be read.
    """
    path, now = config or Path(record.opened.run_file), None
    try:
        now = load(path)
    except ConfigError:
        if config is not None:
            raise
    if now is not None and now.config.record.approvers is not None:
        return now
    try:
        then = RunFile(path, Config.model_validate(record.opened.config, strict=False))
    except ValidationError:  # it was made by another version of this program
        if now is None:
            raise ConfigError(
                f"{path}: the run file of {record.opened.attempt} cannot be read; --config names it"
            ) from None
        return now
    if now is None:
        return then
    kept = now.config.record.model_copy(update={"approvers": then.config.record.approvers})
    return RunFile(now.path, now.config.model_copy(update={"record": kept}))


def makers(gates: Sequence[Mapping[str, object]], sealer: str) -> dict[str, str]:
    """What is known of who made a release, by key and name: who sealed it, and who waived a rule of it."""
    found = {sealer: "holds the key that sealed this release"}
    for gate in gates:
        waivers = gate["waivers"]
        assert isinstance(waivers, list)
        for each in waivers:
            told = f"signed the waiver of {each['waiver']['rule']}"
            found |= {each["key"]: told, each["waiver"]["by"]: told}
    return found


def _waived(gate: Mapping[str, object]) -> tuple[str, ...]:
    findings = gate["findings"]
    assert isinstance(findings, list)
    return tuple(f"{each['rule']} {each['waived']}" for each in findings if each["waived"])


def _policies(sealed: Policy | None, run: RunFile) -> Policies:
    """The approvers that were sealed, and those of the file as it is now."""
    needed, named = run.config.record.approvals, run.config.record.approvers
    if named is None or not (needed or sealed):
        return Policies(sealed, None, "no file of them is named" if sealed else "")
    try:
        return Policies(sealed, Policy(needed, read_approvers(run.resolve(named), f"record.approvers: {named}")))
    except ConfigError as error:
        return Policies(sealed or Policy(needed, ()), None, f"{run.path}: {error}")


def read_approvals(home: Home, model: str, digest: str) -> tuple[ApprovalFile, ...]:
    """Read every file that was signed about a release, in the order of their names."""
    paths = sorted((home.approvals / model / digest).glob("*.json"))
    return tuple(_read(path, path.relative_to(home.root).as_posix()) for path in paths)


def _read(path: Path, name: str) -> ApprovalFile:
    from loragate.engines import signing

    try:
        content = path.read_bytes()
    except OSError as error:
        return ApprovalFile(name, "", unreadable=f"it cannot be read: {error.strerror}")
    file = ApprovalFile(name, digest_bytes(content))
    try:
        approval, signature = read_file(content.decode("utf-8"))
    except (VerificationError, ValueError) as error:
        return replace(file, unreadable=str(error))
    file = replace(file, approval=approval)
    try:
        signing.verify(approval.content, signature, approval.key, NAMESPACE)
    except VerificationError as error:
        return replace(file, forged=str(error))
    except (ValueError, IndexError):
        return replace(file, forged="the key it names is none")
    return file


def question(home: Home, record: AttemptRecord, config: Path | None = None) -> Asked:
    """Verify a release whole, and return what there is to approve.

    Raises:
        ConfigError: The attempt released nothing, or the release needs no approvals.
        VerificationError: It is not as it was sealed.
    """
    folder = sealed_folder(home, record)
    verify_release(home, record, *readers(home), given=False, approvals=False)
    found = asked(home, record, folder.name, config)
    if found is None:
        name = record.release or record.opened.attempt
        raise ConfigError(f"{name} needs no approvals: record.approvals was 0 when it was sealed, and is 0")
    return found


def decide(home: Home, found: Asked, wish: Wish, key: "PrivateKey") -> Signed:
    """Sign an approval or a rejection, write it down, and put it into the chain.

    Raises:
        BlockedError: It would not count: the key is not an approver's, or its owner made the release.
        ConfigError: `expires` does not do.
        BusyError: Another decision about the model is being written.
    """
    from loragate.engines import signing

    approval = _draft(found, wish, key.public)
    content = approval.file(signing.sign(key, approval.content, NAMESPACE))
    name = key_name(key.public)
    told = {"model": approval.model, "release": approval.release, "gates": approval.gates, "key": name}
    event = {**told, "decision": approval.decision, "file": digest_bytes(content), "expires": approval.expires}
    _require_counts(found, approval, content)
    path = home.approvals / approval.model / approval.release / f"{name}.json"
    with locked(home.approvals / approval.model / ".lock", f"another decision about {approval.model}"):
        chain = open_chain(found.run, home)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        chain.append(EVENT, event)
    last = recorded([event], approval.model, approval.release)
    case = replace(found.case, recorded={**found.case.recorded, **last})
    files = read_approvals(home, approval.model, approval.release)
    return Signed(path, approval, checks.judge(case, found.policies, files))


def _draft(found: Asked, wish: Wish, public: str) -> Approval:
    case, now = found.case, found.case.now.replace(microsecond=0)
    expires = "" if wish.rejects and not wish.expires else end_of(wish.expires or DAYS, now).isoformat()
    decision = "rejected" if wish.rejects else "approved"
    digests = (case.release, case.gates, case.manifest)
    return Approval(FORM, case.model, *digests, decision, public, wish.reason.strip(), now.isoformat(), expires)


def _require_counts(found: Asked, approval: Approval, content: bytes) -> None:
    """Refuse to sign what would not count; who rejected a release may always take that back."""
    event = {**asdict(approval), "key": key_name(approval.key), "file": digest_bytes(content)}
    case = replace(found.case, recorded=recorded([event], approval.model, approval.release))
    file = ApprovalFile("it", digest_bytes(content), approval)
    standing = checks.judge(case, found.policies, [file])
    before = found.case.recorded.get(key_name(approval.key))
    if before is not None and before.decision == "rejected" and {r.kind for r in standing.refused} <= OWN:
        return
    if standing.refused or found.policies.now is None:
        why = "; ".join([*(each.why for each in standing.refused), *standing.notes])
        raise BlockedError(f"{found.name} cannot be {approval.decision} with this key, nothing was written: {why}")
