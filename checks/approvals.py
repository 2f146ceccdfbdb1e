"""Whether a release has the approvals it needs: every file that was found is held against who may approve what.

Laws: of one key one file counts at most; who made a release, or waived a rule of it, does not approve it; what the file
of approvers says now can take approvals away and never add one; one rejection that stands blocks, however many approve;
and a rejection that the chain has does not end with its file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from loragate.approvals import (
    Approval,
    ApprovalFile,
    Approver,
    Counted,
    Kind,
    Policies,
    Policy,
    Recorded,
    Refused,
    Standing,
    key_name,
    moment,
)

SKEW = timedelta(minutes=5)
"""How far the clocks of two machines may differ (Kerberos, RFC 4120, section 8.2: acceptable clock skew 5 minutes)."""
REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be approved, and when it is asked.

    Attributes:
        release, gates, manifest: Digests of the release, of its gates.json and of its manifest.json.
        makers: What somebody did for this release, by public key, name of a sealing key, or name of a person.
        recorded: What the chain has last of each key about this release, by the key's name.
    """

    model: str
    release: str
    gates: str
    manifest: str
    now: datetime
    makers: Mapping[str, str]
    recorded: Mapping[str, Recorded]


Why = tuple[Kind, str]


def judge(case: Case, policies: Policies, files: Sequence[ApprovalFile]) -> Standing:
    """Say which approvals count, which do not and why, who has rejected, and who can still approve."""
    standing = Standing(policies.needed, notes=_differences(policies))
    if not policies.needed or policies.now is None:
        return standing
    seen: set[str] = set()
    for file in files:
        standing = _with(standing, case, policies, file, seen)
    standing = _sorted(_with_missing(standing, case, policies, files))
    done = {each.name for each in (*standing.counted, *standing.rejected)}
    in_force = _in_force(policies, case.now.date())
    free = [who for who in in_force if not _made(policies, who.key, case) and who.name not in done]
    standing = replace(standing, waiting=tuple(who.name for who in free))
    able = len(standing.counted) + len(free) + len(standing.rejected)
    if able < policies.needed:
        told = f"only {able} keys can approve it: name more approvers, and release again"
        standing = replace(standing, notes=(*standing.notes, told))
    return standing


def _with(standing: Standing, case: Case, policies: Policies, file: ApprovalFile, seen: set[str]) -> Standing:
    """A standing with one more file."""
    approval = file.approval
    if approval is None:
        return _refused(standing, file, "", ("unreadable", file.unreadable))
    who = _name(policies, approval.key)
    why = _why_no_word(file, approval, case, policies)
    if why is None and approval.decision != REJECTED:
        why = _why_no_approval(file, approval, case, policies)
    if why is None and approval.key in seen:
        why = ("twice", f"another approval of the same key counts already, and one key is one approver ({who})")
    if why is not None:
        return _refused(standing, file, who, why)
    seen.add(approval.key)
    counted = Counted(who, approval.expires, approval.reason)
    if approval.decision == REJECTED:
        return replace(standing, rejected=(*standing.rejected, counted))
    return replace(standing, counted=(*standing.counted, counted))


def _sorted(standing: Standing) -> Standing:
    """A standing in an order that does not depend on the keys."""
    return replace(
        standing,
        counted=tuple(sorted(standing.counted, key=lambda each: each.name)),
        rejected=tuple(sorted(standing.rejected, key=lambda each: each.name)),
        refused=tuple(sorted(standing.refused, key=lambda each: (each.who, each.kind))),
    )


def _refused(standing: Standing, file: ApprovalFile, who: str, why: Why) -> Standing:
    return replace(standing, refused=(*standing.refused, Refused(why[0], who or "nobody knows who", file.file, why[1])))


def _why_no_word(file: ApprovalFile, approval: Approval, case: Case, policies: Policies) -> Why | None:
    """Why a file is not the word of an approver about this release today, be it yes or no."""
    if file.forged:
        return "forged", f"its signature does not hold: {file.forged}"
    return _why_not_asked(approval.key, case, policies) or _why_other(approval, case) or _why_not_now(approval, case)


def _why_not_asked(key: str, case: Case, policies: Policies) -> Why | None:
    """Why a key's owner is not asked at all."""
    today, who = case.now.date(), policies.now.of(key) if policies.now else None
    if who is None:
        if key in case.makers:
            return "self-made", f"its key {case.makers[key]}, and is not among the approvers"
        was = policies.sealed.of(key) if policies.sealed else None
        if was is not None:
            return "revoked", f"the key of {was.name} was taken out of the approvers since the release was sealed"
        return "unknown", f"its key {key_name(key)[:12]} is not among the approvers"
    ends = [each.until for each in _entries(policies, key) if each.until]
    if ends and date.fromisoformat(min(ends)) < today:
        return "lapsed", f"the key of {who.name} counted until {min(ends)}, today is {today} (UTC)"
    return None


def _why_other(approval: Approval, case: Case) -> Why | None:
    """Why a statement is about something else."""
    if (approval.model, approval.release) != (case.model, case.release):
        other = f"{approval.model}, release {approval.release[:12]}"
        return "replayed", f"it was signed for {other}; this is {case.model}, release {case.release[:12]}"
    for name, said, found in (
        ("gates.json", approval.gates, case.gates),
        ("manifest.json", approval.manifest, case.manifest),
    ):
        if said != found:
            return "changed", f"it was signed for a {name} of digest {said[:12]}; the release has {found[:12]}"
    return None


def _why_not_now(approval: Approval, case: Case) -> Why | None:
    made = moment(approval.made)
    if made > case.now + SKEW:
        return "future", f"it says it was made at {approval.made}, which is still to come (now: {_told(case.now)})"
    if approval.expires and moment(approval.expires) <= case.now:
        return "expired", f"it expired at {approval.expires} (now: {_told(case.now)})"
    return None


def _why_no_approval(file: ApprovalFile, approval: Approval, case: Case, policies: Policies) -> Why | None:
    """Why the word of an approver does not count for a release, though it would against it."""
    who = policies.now.of(approval.key) if policies.now else None
    assert who is not None
    if policies.sealed is not None and policies.sealed.of(approval.key) is None:
        told = "was added to the approvers since the release was sealed; it counts for releases made from then on"
        return "added", f"the key of {who.name} {told}"
    if made := _made(policies, approval.key, case):
        return "self-made", f"{who.name} {made}; another pair of eyes has to approve it"
    last = case.recorded.get(key_name(approval.key))
    if last is None:
        return "unrecorded", f"the chain does not have it; {who.name} has to approve again with `loragate approve`"
    if last.digest != file.digest:
        told = f"the chain has another file of {who.name} as the last one ({last.decision}, digest {last.digest[:12]})"
        return "unrecorded", told
    return None


def _made(policies: Policies, key: str, case: Case) -> str:
    """What an approver did for the release, by key or name in either list; empty where nothing is known."""
    marks = [mark for who in _entries(policies, key) for mark in (who.key, *who.seals, who.name)]
    return next((case.makers[mark] for mark in marks if mark in case.makers), "")


def _with_missing(standing: Standing, case: Case, policies: Policies, files: Sequence[ApprovalFile]) -> Standing:
    """A standing with what the chain has and no file says any more."""
    digests, names = {each.digest for each in files}, {each.file.rpartition("/")[2] for each in files}
    for who in _in_force(policies, case.now.date()):
        last, name = case.recorded.get(key_name(who.key)), f"{key_name(who.key)}.json"
        if last is None or last.digest in digests:
            continue
        if name not in names:  # else why it does not count has been said
            why = f"the chain has it ({last.decision}, digest {last.digest[:12]}), and its file is gone"
            standing = replace(standing, refused=(*standing.refused, Refused("missing", who.name, name, why)))
        if last.decision == REJECTED and who.name not in {each.name for each in standing.rejected}:
            gone = Counted(who.name, "", "its file is gone or is another one, the chain still has it")
            standing = replace(standing, rejected=(*standing.rejected, gone))
    return standing


def _in_force(policies: Policies, today: date) -> list[Approver]:
    """Approvers who are in the sealed list and in the one of today, and have lapsed in neither."""
    found = []
    for each in policies.now.approvers if policies.now else ():
        entries = _entries(policies, each.key)
        if policies.sealed is not None and policies.sealed.of(each.key) is None:
            continue
        if all(not entry.until or date.fromisoformat(entry.until) >= today for entry in entries):
            found.append(each)
    return found


def _entries(policies: Policies, key: str) -> list[Approver]:
    lists: tuple[Policy | None, ...] = (policies.sealed, policies.now)
    return [found for each in lists if each is not None and (found := each.of(key)) is not None]


def _name(policies: Policies, key: str) -> str:
    return next((each.name for each in _entries(policies, key)[::-1]), f"key {key_name(key)[:12]}")


def _told(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def _differences(policies: Policies) -> tuple[str, ...]:
    """What the approvers of today differ in from those that were sealed with the release."""
    if policies.unread:
        return (f"who may approve now is not known: {policies.unread}",)
    sealed, now = policies.sealed, policies.now
    if sealed is None or now is None:
        return ("the release was sealed without approvers; those of today count",) if now is not None else ()
    found = []
    if sealed.needed != now.needed:
        more = "the higher number counts"
        found.append(f"the release was sealed with {sealed.needed} needed, the run file now says {now.needed}; {more}")
    if out := [each.name for each in sealed.approvers if now.of(each.key) is None]:
        found.append(f"taken out of the approvers since the release was sealed: {', '.join(out)}")
    if added := [each.name for each in now.approvers if sealed.of(each.key) is None]:
        again = "they do not count for it; release again to have them sealed with it"
        found.append(f"added to the approvers since the release was sealed: {', '.join(added)} ({again})")
    return tuple(found)
