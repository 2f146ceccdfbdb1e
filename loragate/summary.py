"""What `release --json` and `show --json` print of an attempt: the command line's contract."""

from collections.abc import Mapping
from dataclasses import asdict

from loragate.record import EXPECTATIONS, AttemptRecord
from loragate.verdicts import Verdict


def summary(record: AttemptRecord, *, report: str) -> Mapping[str, object]:
    """The object that `release --json` prints: the command line's contract."""
    closed = record.closed
    return {
        "verdict": record.outcome,
        "message": closed.message if closed else "",
        "model": record.opened.model,
        "version": closed.version if closed else None,
        "release": record.release,
        "digest": closed.digest if closed else None,
        "attempt": record.opened.attempt,
        "gates": [_gate(verdict) for verdict in record.verdicts],
        "metrics": record.metrics,
        "comparisons": {name: asdict(found) for name, found in record.comparisons.items()},
        **(
            {"benchmarks": {name: asdict(found) for name, found in record.benchmarks.items()}}
            if record.benchmarks
            else {}
        ),
        **({"look": record.look.told()} if record.look else {}),
        **({"champion": record.champion} if record.champion else {}),
        "worst_rows": {side: [asdict(row) for row in rows] for side, rows in record.worst_rows.items()},
        "waivers": {gate: asdict(review) for gate, review in record.waivers.items()},
        "artifacts": _artifacts(record, report),
        "seconds": record.seconds,
        **({"approvals_needed": record.approvals.needed} if record.approvals else {}),
        **({"fixed": asdict(record.fixed)} if record.fixed else {}),
        **({"plan": record.plan.as_told()} if record.plan else {}),
        **({"merge": asdict(record.merge)} if record.merge and record.merge.candidates else {}),
    }


def _gate(verdict: Verdict) -> dict[str, object]:
    return {
        "gate": verdict.gate,
        "status": verdict.status,
        "findings": [asdict(finding) for finding in verdict.findings],
    }


def _artifacts(record: AttemptRecord, report: str) -> dict[str, object]:
    paths = {name: ref.path for name, ref in record.artifacts.items()}
    return {
        "adapter": paths.get("adapter"),
        "merged": paths.get("merged"),
        "gguf": [path for name, path in paths.items() if name.startswith("gguf_")],
        EXPECTATIONS: paths.get(EXPECTATIONS),
        "report": report,
    }
