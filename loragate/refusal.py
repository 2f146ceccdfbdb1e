"""Why an attempt was refused, or let go by a waiver: the rule, its value, its limit and the rows behind it."""

from collections.abc import Iterator
from dataclasses import dataclass

from loragate.challenge import CHAMPION
from loragate.record import AttemptRecord
from loragate.verdicts import Finding
from loragate.worst_rows import WorstRow, beginning


@dataclass(frozen=True, slots=True)
class Row:
    """A row behind a finding.

    Attributes:
        place: Where it stands, as file:row; empty where that is not on record.
        text: What is in it, or what is wrong with it.
        before, after: Nats with the base and with the tuned model; None where the rule is not about them.
    """

    place: str
    text: str
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """A finding that decided.

    Attributes:
        heading: What the rows are.
        rows: The first few of them.
        more: How many there are besides.
    """

    gate: str
    finding: Finding
    heading: str = ""
    rows: tuple[Row, ...] = ()
    more: int = 0


def causes(record: AttemptRecord) -> tuple[Cause, ...]:
    """Findings that refused the attempt, or would have but for a waiver, in the order of the road; refusals first."""
    found = [
        _cause(record, verdict.gate, finding)
        for verdict in record.verdicts
        for finding in verdict.findings
        if finding.refuses or finding.status == "waived"
    ]
    return tuple(sorted(found, key=lambda cause: cause.finding.status == "waived"))


def _cause(record: AttemptRecord, gate: str, finding: Finding) -> Cause:
    if finding.examples:
        rows = tuple(_example(example) for example in finding.examples)
        more = int(finding.value or 0) - len(rows)
        return Cause(gate, finding, "Rows that break it", rows, max(more, 0))
    if gate == "quality" and finding.rule == "stop_share":
        rows = tuple(_cut_off(record))
        return Cause(gate, finding, "Questions whose answers did not stop", rows)
    if gate == "quality" and (worst := _worst(record, finding.rule)):
        rows = tuple(Row(row.place, row.question, row.before.nats, row.after.nats) for row in worst)
        return Cause(gate, finding, "Held-out rows that fared worst, in nats", rows)
    return Cause(gate, finding)


def _worst(record: AttemptRecord, rule: str) -> tuple[WorstRow, ...]:
    """The rows behind a rule about a ratio of perplexities; none for other rules."""
    if rule.startswith(CHAMPION):
        return record.worst_rows.get(CHAMPION, ())
    return record.worst_rows.get("baseline", ()) if rule == "perplexity_ratio" or rule.startswith("slice/") else ()


def _example(example: str) -> Row:
    """Part an example as the data gate writes it: a place, and what is wrong there where there is more to say."""
    place, _, text = example.partition(": ")
    return Row(place, text)


def _cut_off(record: AttemptRecord) -> Iterator[Row]:
    for sample in record.samples:
        if not sample.after_stopped:
            yield Row("", beginning(sample.question))
