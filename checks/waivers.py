"""Whether a rule that refuses is waived: every waiver is held against the one finding that it may be about.

Laws: a verdict that does not refuse is left as it is; a waiver changes the finding it names and no other; without a
signer, or after its last day, none counts; a waived finding keeps its value and its limit and is still not passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from loragate.verdicts import Finding, Verdict, conclude
from loragate.waivers import Ignored, Review, WaiverFile, rule_name, why_not_until, why_not_waivable


@dataclass(frozen=True, slots=True)
class Case:
    """What is before the gate.

    Attributes:
        candidate: Digest of the candidate at this gate.
        today: The date in UTC.
        max_days: How far ahead a waiver's last day may be.
        signers: Names of those who may waive.
    """

    model: str
    candidate: str
    today: date
    max_days: int
    signers: tuple[str, ...]


def judge(verdict: Verdict, files: Sequence[WaiverFile], case: Case) -> tuple[Verdict, Review]:
    """Return the verdict with the waivers that count, and what was made of each file."""
    if not verdict.refuses:
        return verdict, Review(case.candidate, signers=len(case.signers))
    refusing = {rule_name(verdict.gate, finding): finding for finding in verdict.findings if finding.refuses}
    honoured: dict[str, WaiverFile] = {}
    ignored = []
    for file in files:
        why = _why_not(file, refusing, case)
        if not why and file.waiver is not None:
            honoured.setdefault(file.waiver.rule, file)
        elif _concerns(file, refusing, case):
            ignored.append(Ignored(file.file, why))
    findings = [_waived(finding, honoured.get(rule_name(verdict.gate, finding))) for finding in verdict.findings]
    review = Review(case.candidate, tuple(honoured.values()), tuple(ignored), signers=len(case.signers))
    return (conclude(verdict.gate, findings) if honoured else verdict), review


def waivable(verdict: Verdict) -> tuple[str, ...]:
    """Names of the rules that refuse and may be waived."""
    left = (f for f in verdict.findings if f.refuses and not why_not_waivable(f))
    return tuple(rule_name(verdict.gate, finding) for finding in left)


def _concerns(file: WaiverFile, refusing: dict[str, Finding], case: Case) -> bool:
    """Whether a refusal must speak of a file: it cannot be read, or is about a rule that refuses or this candidate."""
    waiver = file.waiver
    return waiver is None or waiver.rule in refusing or waiver.candidate == case.candidate


def _why_not(file: WaiverFile, refusing: dict[str, Finding], case: Case) -> str:
    """Say why a waiver does not count here; nothing where it does."""
    waiver = file.waiver
    if file.problem or waiver is None:
        return file.problem or "it is no waiver"
    if waiver.by not in case.signers:
        return f"{waiver.by} is not among gates.waivers.signers"
    finding = refusing.get(waiver.rule)
    if finding is None:
        return f"it waives {waiver.rule}, which does not refuse here"
    if (waiver.model, waiver.candidate) != (case.model, case.candidate):
        return f"it is for candidate {waiver.candidate[:12]} of {waiver.model}, this is {case.candidate[:12]}"
    if waiver.found != finding.detail:
        return f"it waives another finding: {waiver.found}"
    return why_not_waivable(finding) or why_not_until(waiver.until, case.today, case.max_days)


def _waived(finding: Finding, file: WaiverFile | None) -> Finding:
    if file is None or file.waiver is None:
        return finding
    waiver = file.waiver
    told = f"by {waiver.by} until {waiver.until}: {waiver.reason} (waiver {file.digest[:12]})"
    return replace(finding, waived=told)
