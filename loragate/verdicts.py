"""What a gate says: findings, a status, and the worst case when evidence is missing.

Laws: a verdict without findings is never a pass; a finding about a number that is not finite never passes; too little
evidence refuses like a failure, and is not called one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "warn", "waived", "inconclusive", "error"]
Evidence = Literal["enough", "little", "none"]

WORST_FIRST: tuple[Status, ...] = ("fail", "error", "inconclusive", "waived", "warn", "pass")
"""A verdict's status is the first of these that one of its findings has."""

REFUSING: frozenset[Status] = frozenset({"fail", "inconclusive", "error"})
"""Statuses that stop a release: `pass`, `warn` and `waived` let it go on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule applied once.

    Attributes:
        rule: Machine name of the rule, stable across versions.
        passed: Whether the rule holds.
        detail: One sentence with the value and the limit.
        severity: What a failure of this rule means for the release.
        value: The number judged, where the rule judges one.
        limit: The number it was held against, where there is one.
        examples: What breaks the rule, the first few, as they stand at the end of `detail`.
        low, high: The interval that the number lies in, where it was judged by one.
        evidence: Whether there was enough to judge by: with little, a rule that does not hold is inconclusive; with
            none, it could not be judged.
        waived: Who lets the release go although the rule does not hold, until when and why; empty where nobody does.
    """

    rule: str
    passed: bool
    detail: str
    severity: Literal["refuse", "warn"] = "refuse"
    value: float | None = None
    limit: float | None = None
    examples: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    evidence: Evidence = "enough"
    waived: str = ""

    @property
    def status(self) -> Status:
        """What this finding alone makes of a verdict."""
        if self.passed:
            return "pass"
        if self.waived:
            return "waived"
        statuses: dict[Evidence, Status] = {"enough": "fail", "little": "inconclusive", "none": "error"}
        return "warn" if self.severity == "warn" else statuses[self.evidence]

    @property
    def refuses(self) -> bool:
        """Whether this finding alone stops a release."""
        return self.status in REFUSING

    @property
    def statement(self) -> str:
        """The detail without the examples."""
        return self.detail.partition(f": {self.examples[0]}")[0] if self.examples else self.detail


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings of one gate and what follows from them."""

    gate: str
    status: Status
    findings: tuple[Finding, ...]

    @property
    def refuses(self) -> bool:
        """Whether the release stops here."""
        return self.status in REFUSING

    @property
    def reasons(self) -> tuple[str, ...]:
        """The details of the findings that refuse, in order."""
        return tuple(f"{f.rule}: {f.detail}" for f in self.findings if f.refuses)

    @property
    def waived(self) -> tuple[str, ...]:
        """What was waived and by whom, in order."""
        return tuple(f"{f.rule} waived {f.waived}" for f in self.findings if f.status == "waived")

    @property
    def sentence(self) -> str:
        """The verdict in one paragraph, as an error message or a report's first line."""
        if not self.refuses:
            return "; ".join([f"{self.gate} gate: {self.status} ({len(self.findings)} rules)", *self.waived])
        undecided = " (inconclusive)" if self.status == "inconclusive" else ""
        return f"refused by the {self.gate} gate{undecided}: " + "; ".join(self.reasons)


def conclude(gate: str, findings: Sequence[Finding]) -> Verdict:
    """Make the verdict that the findings add up to; no findings at all is an error, never a pass."""
    if not findings:
        nothing = Finding("evidence", False, "the gate was given nothing to judge", evidence="none")
        return Verdict(gate, "error", (nothing,))
    found = {finding.status for finding in findings}
    return Verdict(gate, next(status for status in WORST_FIRST if status in found), tuple(findings))


def at_most(rule: str, value: float, limit: float, what: str) -> Finding:
    """Judge `value <= limit`; NaN and infinities do not pass."""
    passed = math.isfinite(value) and value <= limit
    return Finding(rule, passed, f"{what} is {value:.4g}, at most {limit:.4g} allowed", value=value, limit=limit)


def at_least(rule: str, value: float, limit: float, what: str) -> Finding:
    """Judge `value >= limit`; NaN and infinities do not pass."""
    passed = math.isfinite(value) and value >= limit
    return Finding(rule, passed, f"{what} is {value:.4g}, at least {limit:.4g} required", value=value, limit=limit)


def exactly(rule: str, value: int, expected: int, what: str) -> Finding:
    """Judge `value == expected` for counts."""
    detail = f"{what} is {value:,}, exactly {expected:,} required"
    return Finding(rule, value == expected, detail, value=value, limit=expected)


def none_of(rule: str, names: Sequence[str], what: str) -> Finding:
    """Judge that a list of offenders is empty; the first is named."""
    detail = f"{len(names)} {what}" + (f", the first is {names[0]}" if names else "")
    return Finding(rule, not names, detail, value=len(names), limit=0)
