"""Waivers: a named person lets one rule go for one candidate until a date, by a file with a signature beside it.

A waiver says in plain JSON what was found and why that is taken; the file `NAME.json.sig` holds the signature over
exactly its bytes, so `ssh-keygen -Y verify -n loragate-waiver` can check it as well.

What cannot be waived, and why. A waiver lets a person answer for a value that is known. So it cannot stand for a value
that is not: a rule that could not be judged, a number that is not finite, tokens that differ between two models whose
perplexities are compared. Nor for a key or token among the training rows: a model gives back what it has learnt, no
date ends that, and leaving the row out is cheaper than any reason.
"""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, timedelta

from loragate.refs import digest_json
from loragate.verdicts import Finding

NAMESPACE = "loragate-waiver"
"""What a waiver's signature is for: one made for anything else does not count."""
SIGNATURE = ".sig"
"""What a signature's file is called after the file it signs."""
UNKNOWN = frozenset(
    {"facts_complete", "same_tokens", "loss_finite", "heldout_loss_finite", "weights_finite", "positions_compared"}
)
"""Rules that hold where the numbers of a gate can be believed at all."""
SECRET = "no_secrets"  # noqa: S105 - the name of a rule
MOST_IGNORED = 5
"""Waiver files named in a message; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Waiver:
    """What a person signs.

    Attributes:
        model: Name of the model.
        rule: The rule that is let go, as gate/rule.
        candidate: Digest of the candidate at that gate.
        found: What the gate found, word for word.
        by: Name of the person.
        reason: Why the finding is taken as it is.
        until: Last day (UTC) on which the waiver counts, as YYYY-MM-DD.
    """

    model: str
    rule: str
    candidate: str
    found: str
    by: str
    reason: str
    until: str

    @property
    def text(self) -> str:
        """The file that is signed."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class WaiverFile:
    """A waiver as it was found on disk.

    Attributes:
        file: Where it lies, as seen from the run file.
        text: What it holds.
        signature: What its signature's file holds.
        key: Public key that the signature was checked with; empty where there was none.
        waiver: What it says; None where that is no waiver.
        problem: Why it is no waiver that one of the signers has signed; empty where it is.
    """

    file: str
    text: str
    signature: str = ""
    key: str = ""
    waiver: Waiver | None = None
    problem: str = ""

    @property
    def digest(self) -> str:
        """Digest of what was signed, and of who signed."""
        return digest_json([self.text, self.key])


@dataclass(frozen=True, slots=True)
class Ignored:
    """A waiver file that was looked at and does not count, and why."""

    file: str
    why: str


@dataclass(frozen=True, slots=True)
class Review:
    """What a gate that would refuse made of the waivers it found.

    Attributes:
        candidate: Digest of the candidate at this gate: what a waiver must name.
        honoured: Waivers that count.
        ignored: Those that do not.
        commands: For each rule that still refuses and may be waived, the command that waives it.
        signers: How many persons may waive.
    """

    candidate: str
    honoured: tuple[WaiverFile, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    commands: tuple[str, ...] = ()
    signers: int = 0

    @property
    def told(self) -> tuple[str, ...]:
        """What a person who was refused must know of waivers, a sentence each."""
        looked = [f"{each.file} does not count: {each.why}" for each in self.ignored[:MOST_IGNORED]]
        more = len(self.ignored) - len(looked)
        looked += [f"{more:,} more waivers do not count"] if more else []
        return (f"candidate {self.candidate}", *looked, *(f"to waive: {command}" for command in self.commands))


def read_waiver(text: str) -> Waiver:
    """Read a waiver.

    Raises:
        ValueError: It is not a JSON object of the waiver's keys, each with a text.
    """
    names = [field.name for field in fields(Waiver)]
    try:
        found = json.loads(text)
    except ValueError:
        raise ValueError("it is not JSON") from None
    whole = isinstance(found, dict) and set(found) == set(names) and all(isinstance(v, str) for v in found.values())
    if not whole:
        raise ValueError(f"it is not an object of the texts {', '.join(names)} and nothing else")
    return Waiver(**found)


def why_not_waivable(finding: Finding) -> str:
    """Say why a finding cannot be waived; nothing where it can."""
    name = finding.rule.rpartition(".")[2]
    if finding.evidence == "none" or name in UNKNOWN:
        return "it could not be judged, or says whether anything could: there is no known value to answer for"
    if finding.value is not None and not math.isfinite(finding.value):
        return "its value is not a finite number: there is no known value to answer for"
    if name == SECRET:
        return "a key or token must not be learnt: leave the row out"
    return ""


def why_not_until(until: str, today: date, max_days: int) -> str:
    """Say why a last day does not do; nothing where it does."""
    try:
        day = date.fromisoformat(until)
    except ValueError:
        return f"its last day, {until!r}, is not a date as YYYY-MM-DD"
    if day < today:
        return f"it ended on {day}, today is {today} (UTC)"
    latest = today + timedelta(days=max_days)
    return f"its last day, {day}, is more than {max_days} days ahead (latest: {latest})" if day > latest else ""


def rule_name(gate: str, finding: Finding) -> str:
    """The name by which a waiver knows a finding."""
    return f"{gate}/{finding.rule}"


def waive_command(attempt: str, rule: str, signers: Sequence[str], home: str) -> str:
    """The command that waives a rule; `home` is named where it is not found without."""
    by = shlex.quote(signers[0]) if len(signers) == 1 else "NAME"
    where = f" --home {shlex.quote(home)}" if home else ""
    asked = '--reason "WHY" --until YYYY-MM-DD --key ~/.ssh/id_ed25519'
    return f"loragate waive {attempt} --rule {rule} --by {by} {asked}{where}"
