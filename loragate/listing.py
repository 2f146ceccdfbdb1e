"""Records as text for a terminal: a list, an attempt in short, a check rule by rule."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loragate.challenge import models_of
from loragate.defects import CATALOGUE, Defect
from loragate.errors import ConfigError
from loragate.home import Home
from loragate.ladder import Rung
from loragate.plan import GIGABYTE, Plan
from loragate.record import EXPECTATIONS, AttemptRecord
from loragate.refusal import Cause, causes
from loragate.verdicts import Finding, Verdict

MARK = {
    "pass": "pass",
    "warn": "WARN",
    "waived": "WAIVED",
    "fail": "FAIL",
    "inconclusive": "INCONCLUSIVE",
    "error": "ERROR",
}
COLUMNS = ("release", "verdict", "aliases", "when", "digest", "attempt")
SIDES = {"train": "train", "heldout": "held-out"}
"""What the name of a rule about one side's rows begins with, and that side's column."""
RULE_COLUMNS = ("rule", "result", *SIDES.values(), "limit")
WIDTH = 100
"""Columns of a terminal that nothing but a path goes beyond."""
DATA_DOCS = "gx/uncommitted/data_docs/local_site/index.html"
"""Where Great Expectations puts the page about its results, in the artifact's folder."""


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


def pick(home: Home, name: str) -> AttemptRecord:
    """Find a record by release (model@version or model@alias), attempt id, or model (its newest attempt).

    Raises:
        ConfigError: There is none.
    """
    records = home.records()
    for record in reversed(records):
        aliases = record.closed.aliases if record.closed else ()
        names = (record.release, record.opened.attempt, record.opened.model)
        if name in (*names, *(f"{record.opened.model}@{alias}" for alias in aliases)):
            return record
    known = ", ".join(sorted({r.release or r.opened.model for r in records})) or "none"
    raise ConfigError(f"{name}: no such release on record in {home.root}; known: {known}. --home chooses another home")


def describe(record: AttemptRecord, report: str) -> str:
    """The verdict, the gates, the ladder and where things are; `report` may be empty."""
    closed = record.closed
    decisive = {(cause.gate, cause.finding): cause for cause in causes(record)}
    lines = [
        f"{record.outcome.upper()}  {record.release or record.opened.model}",
        *_ending(record),
        "",
        *(_gate(verdict, decisive) for verdict in record.verdicts),
        "",
        *_waivers(record),
        *_ladder(record),
        *_compared(record),
        *_tasks(record),
        *_merges(record),
        *(f"{name:<18} {ref.path}" for name, ref in record.artifacts.items()),
        f"{'attempt':<18} {record.opened.attempt}, started {record.opened.started}",
        *([f"{'aliases':<18} {', '.join(closed.aliases)}"] if closed and closed.aliases else []),
        *_approvals(record),
        *([f"{'digest':<18} {closed.digest}"] if closed and closed.digest else []),
        *([f"{'report':<18} {report}"] if report else []),
    ]
    return "\n".join(lines)


def _approvals(record: AttemptRecord) -> list[str]:
    """How many have to approve a release before it becomes champion, and where to see who has."""
    if record.approvals is None or record.outcome != "released":
        return []
    return [f"{'approvals needed':<18} {record.approvals.needed}: loragate approvals {record.release}"]


def describe_check(record: AttemptRecord, report: str) -> str:
    """The verdict, every rule with the rows that break it, and where to look further."""
    ending = [line for text in _ending(record) for line in textwrap.wrap(_visible(text), WIDTH)]
    tables = [line for verdict in record.verdicts for line in (*_told(verdict), "")]
    tables += [*_planned(record.plan), ""] if record.plan else []
    tables += _waivers(record)
    places = {**_check_places(record), "check": f"{record.opened.attempt}, started {record.opened.started}"}
    where = [f"{name:<14} {place}" for name, place in {**places, "report": report}.items()]
    where += _fixed(record)
    return "\n".join([f"{record.outcome.upper()}  {record.opened.model}", *ending, "", *tables, *where])


def _told(verdict: Verdict) -> Iterator[str]:
    """A gate's rules: those about rows as a table, of the others what does not hold."""
    if verdict.gate == "data":
        yield from _rules(verdict)
        return
    yield f"{verdict.gate} gate  {MARK[verdict.status]}  ({len(verdict.findings)} rules)"
    for finding in verdict.findings:
        if not finding.passed:
            word = "warning: " if finding.severity == "warn" else ""
            yield from _indented(f"{word}{finding.rule}: {finding.detail}", 4)
            yield from _indented(f"waived {finding.waived}" if finding.waived else "", 8)


def _planned(plan: Plan) -> Iterator[str]:
    """What training will take, a line each."""
    model, rows, memory = plan.model, plan.rows, plan.memory
    without = f"on; without it {model.memory.total / GIGABYTE:.2f} GB"
    share = f"{model.trainable / model.parameters:.3%} of {model.parameters:,}"
    yield "the plan"
    yield from (
        f"  {name:<22} {told}"
        for name, told in {
            "trainable parameters": f"{model.trainable:,} ({share}), in {model.modules} modules",
            "optimizer steps": f"{plan.steps:,} in {plan.epochs} epochs of {rows.rows:,} rows",
            "forward passes": f"of up to {model.forward_tokens:,} tokens; a step has about {plan.step_tokens:,.0f}",
            "tokens an epoch": f"{rows.tokens:,}, of which {rows.supervised:,} taught",
            "estimated memory": f"{memory.total / GIGABYTE:.2f} GB of {plan.device.memory / GIGABYTE:.2f} GB, "
            f"{plan.device.name}, {model.dtype}",
            "gradient checkpointing": without if plan.checkpointing else "off",
            **({"estimated time": f"{plan.seconds / 60:.1f} minutes"} if plan.seconds is not None else {}),
        }.items()
    )


def _fixed(record: AttemptRecord) -> Iterator[str]:
    """What a cleaned copy differs in, and where it is."""
    if record.fixed is not None:
        fixed = record.fixed
        left_out = f"{fixed.duplicates:,} exact copies and {fixed.rejected:,} rows that a rule refuses"
        yield f"{'cleaned copy':<14} {fixed.kept:,} rows, {fixed.trimmed:,} of them trimmed; left out: {left_out}"
        yield from (f"{'':<14} {file}" for file in fixed.files)


def _check_places(record: AttemptRecord) -> dict[str, str]:
    paths = {name: ref.path for name, ref in record.artifacts.items()}
    facts = paths.pop(EXPECTATIONS, None)
    return paths | ({"data docs": f"{facts}/{DATA_DOCS}", "rejected rows": f"{facts}/rejects.jsonl"} if facts else {})


def _rules(verdict: Verdict) -> Iterator[str]:
    """A gate's rules as a table, one line for both sides; below a rule that does not hold, the rows that break it."""
    rules: dict[str, dict[str, Finding]] = {}
    for finding in verdict.findings:
        side, _, rule = finding.rule.partition(".")
        side, rule = (side, rule) if side in SIDES else ("", finding.rule)
        rules.setdefault(rule, {})[side] = finding
    lines = [RULE_COLUMNS, *(_rule_cells(rule, sides) for rule, sides in rules.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    counted = f"{len(verdict.findings)} rules, sides counted apart; how many rows break each"
    yield f"{verdict.gate} gate  {MARK[verdict.status]}  ({counted})"
    yield ""
    for line, sides in zip(lines, [{}, *rules.values()], strict=True):
        yield _aligned(line, widths)
        yield from (below for finding in sides.values() if not finding.passed for below in _breaking(finding))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Cells as a line: numbers of rows to the right, the rest to the left."""
    columns = zip(RULE_COLUMNS, cells, widths, strict=True)
    padded = (cell.rjust(width) if name in SIDES.values() else cell.ljust(width) for name, cell, width in columns)
    return "  ".join(["", *padded]).rstrip()


def _rule_cells(rule: str, sides: Mapping[str, Finding]) -> tuple[str, ...]:
    failed = {finding.severity for finding in sides.values() if not finding.passed}
    waived = all(finding.waived for finding in sides.values() if finding.status not in ("pass", "warn"))
    result = ("WAIVED" if waived else "FAIL") if "refuse" in failed else "WARN" if failed else "ok"
    limits = " / ".join(dict.fromkeys(filter(None, map(_limit, sides.values()))))
    return (rule, result, *(_rows(sides.get(side)) for side in SIDES), limits)


def _rows(finding: Finding | None) -> str:
    """How many rows break a rule, or which share of them does; a dash where neither was judged, or could be."""
    if finding is None or finding.value is None or not (finding.passed or finding.value):
        return "-"
    return _short(finding.value)


def _limit(finding: Finding) -> str:
    if not finding.limit:
        return ""
    return f"{'at least' if finding.rule.endswith('.rows') else 'at most'} {_short(finding.limit)}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.4g}"


def _breaking(finding: Finding) -> Iterator[str]:
    """What breaks a rule, and the examples one below another."""
    yield from _indented(finding.statement, 6)
    yield from _indented(f"waived {finding.waived}" if finding.waived else "", 8)
    for example in finding.examples:
        yield from _indented(example, 8)
    more = finding.value - len(finding.examples) if finding.value is not None and finding.examples else 0
    if more > 0:
        yield from _indented(f"and {more:,.0f} more", 8)


def _indented(text: str, columns: int) -> list[str]:
    first, later = " " * columns, " " * (columns + 2)
    return textwrap.wrap(_visible(text), WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _visible(text: str) -> str:
    """A text in one line, without what a terminal obeys."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def _ending(record: AttemptRecord) -> list[str]:
    """How the attempt ended, unless the failed rules below say it."""
    if record.closed is None:
        return ["the attempt has no end on record: it is running, or was killed"]
    return [] if record.outcome == "refused" else [record.closed.message]


def _gate(verdict: Verdict, decisive: Mapping[tuple[str, Finding], Cause]) -> str:
    """A gate's status, what does not hold, and behind a rule that decides its interval and the rows."""
    marks = {"refuse": "", "warn": "warning: "}
    lines = [f"{verdict.gate + ' gate':<18} {MARK[verdict.status]}  ({len(verdict.findings)} rules)"]
    for finding in verdict.findings:
        if not finding.passed:
            lines.append(f"    {marks[finding.severity]}{finding.rule}: {finding.detail}")
            cause = decisive.get((verdict.gate, finding))
            lines += _behind(cause) if cause else []
    return "\n".join(lines)


def _behind(cause: Cause) -> Iterator[str]:
    """What the detail of a finding does not hold: who waived it, the whole interval, the rows."""
    finding = cause.finding
    if finding.waived:
        yield f"        WAIVED {finding.waived}"
    if finding.low is not None and finding.high is not None and finding.value is not None:
        limit = f", limit {finding.limit:.4g}" if finding.limit is not None else ""
        yield f"        value {finding.value:.4g}, interval {finding.low:.4g} to {finding.high:.4g}{limit}"
    if finding.examples or not cause.rows:
        return  # they stand in the detail
    yield f"        {cause.heading[0].lower()}{cause.heading[1:]}:"
    for row in cause.rows:
        numbers = f"{row.before:.2f} -> {row.after:.2f}" if row.before is not None else ""
        yield "          " + "  ".join(filter(None, (row.place, numbers, _visible(row.text))))


def _waivers(record: AttemptRecord) -> list[str]:
    """What a refused person must know to have a rule waived."""
    if record.outcome != "refused":
        return []
    told = [line for review in record.waivers.values() if review.commands or review.ignored for line in review.told]
    return [*told, ""] if told else []


def _ladder(record: AttemptRecord) -> list[str]:
    """Every rung, and what the step to it cost: ratio and interval, divergence, agreement."""
    if not record.ladder:
        return []
    lines = ["perplexity on the held-out answers, and what each step did to it"]
    perplexities = {rung.name: rung.nll.perplexity for rung in record.ladder}
    lines += [
        f"  {rung.name:<12} {rung.nll.perplexity:10.3f}{_step(rung, perplexities, record)}" for rung in record.ladder
    ]
    return [*lines, ""]


def _step(rung: Rung, perplexities: Mapping[str, float], record: AttemptRecord) -> str:
    if rung.above not in perplexities:
        return ""
    before = perplexities[rung.above]
    told = f"   x{rung.nll.perplexity / before if before else math.nan:.3f} of {rung.above}"
    found, far = record.comparisons.get(rung.name), rung.divergence
    if found and not found.problem:
        told += f" (x{found.low:.3f} to x{found.high:.3f})"
    if far.positions:
        told += f"   KL {far.kl:.3g}, top-1 {far.top1_agreement:.3f}"
    return told


def _compared(record: AttemptRecord) -> list[str]:
    """How sure the other ratios are, and what as many rows are able to show."""
    lines = []
    rungs = {rung.name for rung in record.ladder if rung.above} - {"tuned"}
    for name, found in record.comparisons.items():
        if found.problem or name in rungs:
            continue
        sure = f"with {100 * (1 - 2 * found.alpha):.4g} % confidence ({found.rows:,} rows)"
        lines.append(f"{_visible(models_of(name))}: x{found.low:.3f} to x{found.high:.3f} {sure}")
        if "slice/" in name:
            continue
        shown = f"with 80 % power, as many rows show a true ratio of x{found.shown_ratio:.3f} to be at most"
        few = "  so few rows do not tell how large a ratio they are able to show"
        lines.append(few if math.isnan(found.shown_ratio) else f"  {shown} x{found.limit:.4g}")
    return [*lines, *_look(record), ""] if lines else []


def _tasks(record: AttemptRecord) -> list[str]:
    """Base and tuned model on every task, each value with its standard error."""
    lines = [
        f"  {name:<16} {found.unit} {found.base:.4g} ± {found.base_error:.2g} -> {found.tuned:.4g} ± "
        f"{found.tuned_error:.2g}, worse by {found.drop:.4g} ± {found.drop_error:.2g} ({found.documents:,} documents)"
        for name, found in record.benchmarks.items()
    ]
    return ["tasks, with standard errors", *lines, ""] if lines else []


def _look(record: AttemptRecord) -> list[str]:
    """How often the held-out rows had been looked at, and against which champion."""
    look, against = record.look, record.champion
    told = [f"champion: {against}"] if against else []
    worn = f"look number {look.number:.4g} at the held-out rows, with alpha {look.alpha:.2g}" if look else ""
    return [*told, *([worn] if worn else [])]


def _merges(record: AttemptRecord) -> list[str]:
    """Every merge that was scored against what was trained."""
    if not record.merge or not record.merge.candidates:
        return []
    lines = [f"merges of the adapter, held against what was trained; kept: {record.merge.chosen}"]
    for each in record.merge.candidates:
        agreed = f"top-1 agreement {each.top1_agreement:.4f}"
        lines.append(f"  {each.name:<16} {each.nll.perplexity:10.3f}   KL {each.kl:.3g}   {agreed}")
    return [*lines, ""]


def catalogue_table(catalogue: Sequence[Defect]) -> str:
    """Every defect that can be planted, and the gate that should catch it."""
    lines = [f"{'defect':<22}  {'gate':<9}  what is wrong"]
    return "\n".join([*lines, *(f"{each.name:<22}  {each.gate:<9}  {each.what}" for each in catalogue)])


def sabotage_table(outcome: Mapping[str, Any]) -> str:
    """What became of each defect, the kill score, and of every survivor what it means and what to do."""
    known = {each.name: each for each in CATALOGUE}
    lines = [f"{'defect':<22}  {'result':<14}  {'gate':<12}  rules"]
    for each in outcome["defects"]:
        rules = ", ".join(each["rules"]) or "-"
        lines.append(f"{each['defect']:<22}  {each['status']:<14}  {each['gate'] or '-':<12}  {rules}")
    for each in (each for each in outcome["defects"] if each["status"] != "caught"):
        defect, said = known[each["defect"]], each["said"].rstrip(".")
        told = f"It should be caught by the {defect.gate} gate; {said}. What to do: {defect.advice}."
        lines += ["", f"{defect.name}: {defect.what}.", *textwrap.wrap(told, WIDTH)]
    score = f"{outcome['score']:.3f}" if math.isfinite(outcome["score"]) else "none"
    caught = f"{outcome['caught']} of {outcome['planted']} caught by the gate that should"
    return "\n".join([*lines, "", f"kill score {score}: {caught}"])
