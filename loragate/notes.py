"""What MLflow's pages say in words: the note of a run, the descriptions of a version and of a model, as Markdown."""

import math
import re
from collections.abc import Iterator, Sequence
from html import escape

from loragate.comparison import Comparison
from loragate.ladder import Rung
from loragate.record import AttemptRecord

REPORT = "report.html"
PROJECT = "loragate"
MAX_REASON_CHARS = 500
GAP = "&emsp;"
SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")
"""What Markdown gives a meaning to; a row's text in a refusal must not."""


def run_note(record: AttemptRecord) -> str:
    """The note of a run: verdict, reason, gates, ladder, and where the rest is."""
    closed = record.closed
    return _page(
        f"## {record.outcome.upper()} {_plain(record.release or '')}".strip(),
        _plain(closed.message) if closed else "",
        *_gates(record),
        *_ladder(record),
        f"The whole report with every finding is the artifact **{REPORT}**, the journal behind it **journal.jsonl**.",
    )


def version_description(record: AttemptRecord, digest: str) -> str:
    """The description of a version: verdict in a sentence, base model, perplexities, gates, and how to verify it."""
    waived = any(verdict.waived for verdict in record.verdicts)
    verdict = "Released: every gate passed or was waived." if waived else "Released: every gate passed."
    return _page(
        f"**{verdict}** {_trained(record)} {_gain(record)}".strip(),
        *_ladder(record),
        *_gates(record),
        "The files are a sealed bundle. To check every byte, the signature and the manifest of a download, offline:",
        "    loragate verify DIR",
        f"Report: **{REPORT}** among the files. SHA-256 of the release: `{digest}`.",
    )


def model_description(record: AttemptRecord) -> str:
    """The description of a registered model, which holds for all of its versions."""
    return _page(
        f"{_plain(base_name(record))}, fine-tuned and released through gates by {PROJECT}.",
        "Each version is a sealed bundle: adapter, GGUF files and the evidence for them. **champion** is the version "
        "to serve, **candidate** the newest that passed, **previous** what a rollback returns to. Take aliases, not "
        "the highest number.",
    )


def base_name(record: AttemptRecord) -> str:
    """What the base model is called: its id on a hub, or the last part of its path."""
    base = record.opened.config.get("base_model")
    source = str(base.get("source", "")) if isinstance(base, dict) else ""
    local = source.startswith(("/", ".", "~")) or source.count("/") > 1 or source.endswith(".gguf")
    return source.rpartition("/")[2] if local else source


def _page(*paragraphs: str) -> str:
    return "\n\n".join(text for text in paragraphs if text)


def _plain(text: str) -> str:
    return SPECIAL.sub(r"\\\1", escape(" ".join(text.split()), quote=False))


def _trained(record: AttemptRecord) -> str:
    train = record.opened.config.get("train")
    if not isinstance(train, dict):
        return ""
    return f"{_plain(base_name(record))}, {train.get('method')} of rank {train.get('r')}."


def _gain(record: AttemptRecord) -> str:
    """How the tuned model stands to its base, with the interval."""
    held = record.comparisons.get("tuned")
    if held is None or not math.isfinite(held.ratio):
        return ""
    before, after = held.before.perplexity, held.after.perplexity
    return f"Perplexity on {held.rows:,} held-out rows {before:.3f} -> {after:.3f}, {_ratio(held)}."


def _ratio(held: Comparison) -> str:
    return f"x{held.ratio:.3f} (x{held.low:.3f} to x{held.high:.3f} with {100 * (1 - held.alpha):.3g} % confidence)"


def _gates(record: AttemptRecord) -> Iterator[str]:
    told = {verdict.gate: "; ".join((*verdict.reasons, *verdict.waived)) for verdict in record.verdicts}
    heads = ("gate", "verdict", "rules", *(("reasons",) if any(told.values()) else ()))
    rows = [
        (verdict.gate, verdict.status, str(len(verdict.findings)), told[verdict.gate][:MAX_REASON_CHARS])
        for verdict in record.verdicts
    ]
    yield from _table(heads, rows)


def _ladder(record: AttemptRecord) -> Iterator[str]:
    rows = [(rung.name, f"{rung.nll.perplexity:.3f}", _step(record, rung)) for rung in record.ladder]
    yield from _table(("held-out rows", "perplexity", "against the one that it was made from"), rows)


def _step(record: AttemptRecord, rung: Rung) -> str:
    held = record.comparisons.get(rung.name)
    return f"{rung.above}: {_ratio(held)}" if held is not None and math.isfinite(held.ratio) else rung.above


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table whose columns stand apart, which MLflow's style sheet does not see to; none where there are no rows."""
    if rows:
        cells = [heads, *([_plain(cell) for cell in row[: len(heads)]] for row in rows)]
        lines = ["| " + " | ".join(f"{cell}{GAP}" for cell in row) + " |" for row in cells]
        yield "\n".join([lines[0], "|" + ":---|" * len(heads), *lines[1:]])
