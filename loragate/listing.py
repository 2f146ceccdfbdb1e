"""Records as text for a terminal."""

from collections.abc import Sequence

from loragate.errors import ConfigError
from loragate.record import AttemptRecord
from loragate.verdicts import Verdict

MARK = {"pass": "pass", "warn": "WARN", "fail": "FAIL", "inconclusive": "INCONCLUSIVE", "error": "ERROR"}
COLUMNS = ("release", "verdict", "aliases", "when", "digest", "attempt")


def as_rows(records: Sequence[AttemptRecord], model: str | None) -> list[dict[str, object]]:
    """One row an attempt, newest first. An alias belongs to the newest version that was given it."""
    rows: list[dict[str, object]] = []
    taken: set[tuple[str, str]] = set()
    for record in reversed([r for r in records if model in (None, r.opened.model)]):
        closed = record.closed
        aliases = [a for a in (closed.aliases if closed else ()) if (record.opened.model, a) not in taken]
        taken |= {(record.opened.model, alias) for alias in aliases}
        rows.append(
            {
                "release": record.release or record.opened.model,
                "verdict": record.outcome,
                "aliases": aliases,
                "when": record.opened.started,
                "digest": closed.digest if closed else None,
                "attempt": record.opened.attempt,
            }
        )
    return rows


def as_table(rows: Sequence[dict[str, object]]) -> str:
    """Rows as aligned columns; digests shortened to 12 digits."""
    cells = [[_cell(name, row[name]) for name in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in [list(COLUMNS), *cells]) for i in range(len(COLUMNS))]
    lines = [[*COLUMNS], *cells]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(name: str, value: object) -> str:
    if isinstance(value, list):
        return ",".join(value) or "-"
    text = str(value) if value is not None else "-"
    return text[:12] if name == "digest" else text


def pick(records: Sequence[AttemptRecord], name: str, home: str) -> AttemptRecord:
    """Find a record by release (model@version or model@alias), attempt id, or model (its newest attempt).

    Raises:
        ConfigError: There is none.
    """
    for record in reversed(records):
        aliases = record.closed.aliases if record.closed else ()
        names = (record.release, record.opened.attempt, record.opened.model)
        if name in (*names, *(f"{record.opened.model}@{alias}" for alias in aliases)):
            return record
    known = ", ".join(sorted({r.release or r.opened.model for r in records})) or "none"
    raise ConfigError(f"{name}: no such release on record in {home}; known: {known}. --home chooses another home")


def describe(record: AttemptRecord, report: str) -> str:
    """The verdict, the gates, the ladder and where things are; `report` may be empty."""
    closed = record.closed
    lines = [
        f"{record.outcome.upper()}  {record.release or record.opened.model}",
        *_ending(record),
        "",
        *(_gate(verdict) for verdict in record.verdicts),
        "",
        *_ladder(record),
        *(f"{name:<18} {ref.path}" for name, ref in record.artifacts.items()),
        f"{'attempt':<18} {record.opened.attempt}, started {record.opened.started}",
        *([f"{'aliases given':<18} {', '.join(closed.aliases)}"] if closed and closed.aliases else []),
        *([f"{'digest':<18} {closed.digest}"] if closed and closed.digest else []),
        *([f"{'report':<18} {report}"] if report else []),
    ]
    return "\n".join(lines)


def _ending(record: AttemptRecord) -> list[str]:
    """How the attempt ended, unless the failed rules below say it."""
    if record.closed is None:
        return ["the attempt has no end on record: it is running, or was killed"]
    return [] if record.outcome == "refused" else [record.closed.message]


def _gate(verdict: Verdict) -> str:
    marks = {"refuse": "", "warn": "warning: "}
    failed = [f"\n    {marks[f.severity]}{f.rule}: {f.detail}" for f in verdict.findings if not f.passed]
    return f"{verdict.gate + ' gate':<18} {MARK[verdict.status]}  ({len(verdict.findings)} rules)" + "".join(failed)


def _ladder(record: AttemptRecord) -> list[str]:
    if not record.ladder:
        return []
    first = record.ladder[0].nll.perplexity
    lines = ["perplexity on the held-out answers"]
    for rung in record.ladder:
        ratio = rung.nll.perplexity / first
        lines.append(f"  {rung.name:<16} {rung.nll.perplexity:10.3f}   x{ratio:.3f} of {record.ladder[0].name}")
    return [*lines, ""]
