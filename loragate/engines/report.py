"""The report: everything on record about one attempt or check as one HTML document that opens offline.

Promises: nothing is loaded from outside and no script runs (a content security policy tells the browser so);
every text of the record is data, never markup; the same record gives the same bytes; a number that is not
finite is written as a word; what is capped is counted.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue as Json

from loragate.challenge import models_of
from loragate.comparison import Comparison
from loragate.engines.report_plots import ladder_plot, lengths_plot, loss_plot, shares_plot
from loragate.engines.report_text import DIVIDED, duration, number, public, ratio, readable, when
from loragate.histogram import Histogram
from loragate.home import Kind
from loragate.ladder import Rung
from loragate.record import AttemptRecord, CurvePoint, Sample
from loragate.refusal import Cause, causes
from loragate.verdicts import Status, Verdict

MOST_SAMPLES = 12
"""Most samples shown; the rest is counted."""
MOST_STEPS = 8
"""Most step numbers listed in a row; the rest is counted."""
MOST_CAUSES = 3
"""Most rules told in full at the top, so that they fit on one screen; the rest is counted and stands below."""
MOST_ROWS = {1: 5, 2: 3, 3: 2}
"""Most rows below each of them, by how many rules there are; of rows that are a place alone, the first of these."""
MOST_NAMES = 6
"""Most rules named in the first sentence; the rest is counted."""

UNFINISHED = (
    "This {} has not closed its record: it is still running, or it was killed before it could say how "
    "it ended. What it had found by then follows."
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One number or name with its meaning; `note` says more where there is more to say."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of the ladder held against the one that it was made from and against the first; as text.

    Attributes:
        made: What lies between it and the rung before, and which that is; empty for the first.
        interval: The interval of its ratio to the rung before, empty where there is none.
    """

    rung: Rung
    made: str
    to_previous: float | None
    interval: str
    to_baseline: float | None


@dataclass(frozen=True, slots=True)
class Why:
    """What decided, as much of it as fits on one screen.

    Attributes:
        causes: The findings told in full, each with its first rows.
        more: How many decided besides.
    """

    causes: tuple[Cause, ...]
    more: int


def render_report(record: AttemptRecord, kind: Kind = "record") -> str:
    """Render a record as one self-contained HTML document; a section without data says so in one line.

    The report of a check has no sections about what a check does not do: train, measure, sample.
    """
    trains = kind == "record"
    noun = "attempt" if trains else "check"
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            record=record,
            trains=trains,
            noun=noun,
            unversioned="given when it is registered" if record.outcome == "released" else "none",
            reason=_reason(record) if record.closed else UNFINISHED.format(noun),
            why=_why(record),
            headlines=_headlines(record) if trains else _check_headlines(record),
            gates=sorted(record.verdicts, key=_urgency),
            plots={
                "loss": loss_plot(record.curve),
                "ladder": ladder_plot(record.ladder),
                "lengths": lengths_plot(record.lengths, _token_limit(record)),
                "shares": shares_plot(record.taught_shares),
            },
            training=_training_facts(record.curve),
            steps=_steps(record),
            lengths=_length_facts(record.lengths),
            shares=_share_facts(record.taught_shares),
            samples=record.samples[:MOST_SAMPLES],
            total_seconds=math.fsum(s for s in record.seconds.values() if math.isfinite(s)),
            config=tuple(_flat(record.opened.config)),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else readable(str(value)),
    )
    environment.filters |= {
        "number": number,
        "ratio": ratio,
        "duration": duration,
        "when": when,
        "public": public,
        "models": partial(models_of, over=DIVIDED),
    }
    return environment


def _urgency(verdict: Verdict) -> int:
    order: dict[Status, int] = {"fail": 0, "error": 1, "inconclusive": 2, "waived": 3, "warn": 4, "pass": 5}
    return order[verdict.status]


def _why(record: AttemptRecord) -> Why:
    found = causes(record)
    shown = found[:MOST_CAUSES]
    return Why(tuple(_cut(cause, MOST_ROWS[len(shown)]) for cause in shown), len(found) - len(shown))


def _cut(cause: Cause, rows: int) -> Cause:
    rows = rows if any(row.text for row in cause.rows) else MOST_ROWS[1]
    beyond = max(len(cause.rows) - rows, 0)
    return replace(cause, rows=cause.rows[:rows], more=cause.more + beyond)


def _reason(record: AttemptRecord) -> str:
    """How the attempt ended; of a refusal the gate and its rules only, because values and rows follow at once."""
    assert record.closed is not None
    refusing = [verdict for verdict in record.verdicts if verdict.refuses]
    if record.outcome != "refused" or not refusing:
        return record.closed.message
    (gate, *_) = refusing
    names = [finding.rule for finding in gate.findings if finding.refuses]
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    undecided = " (inconclusive)" if gate.status == "inconclusive" else ""
    return f"by the {gate.gate} gate{undecided}: {', '.join(names[:MOST_NAMES])}{more}"


def _flat(tree: Mapping[str, Json], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value) as `--set` spells them."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _headlines(record: AttemptRecord) -> tuple[Fact, ...]:
    return (
        _gates_fact(record.verdicts),
        _perplexity_fact({rung.name: rung.nll.perplexity for rung in record.ladder}),
        _stops_fact(record.samples),
        _time_fact(record.seconds),
    )


def _check_headlines(record: AttemptRecord) -> tuple[Fact, ...]:
    return (
        _rules_fact(record.verdicts),
        _rows_fact(record.lengths),
        _taught_fact(record.taught_shares),
        _time_fact(record.seconds),
    )


def _rules_fact(verdicts: Sequence[Verdict]) -> Fact:
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    if not findings:
        return Fact("Rules that hold", "none judged")
    broken = [finding.severity for finding in findings if not finding.passed]
    note = f"{broken.count('refuse'):,} refuse, {broken.count('warn'):,} warn" if broken else "none refuses or warns"
    return Fact("Rules that hold", f"{len(findings) - len(broken):,} of {len(findings):,}", note)


def _rows_fact(lengths: Histogram | None) -> Fact:
    name = "Training rows rendered"
    return Fact(name, number(lengths.values), f"{lengths.total:,} tokens") if lengths else Fact(name, "none rendered")


def _taught_fact(shares: Histogram | None) -> Fact:
    name = "Supervised share"
    return Fact(name, f"{shares.median}%", "of a row's tokens, median") if shares else Fact(name, "not counted")


def _gates_fact(verdicts: Sequence[Verdict]) -> Fact:
    if not verdicts:
        return Fact("Gates", "none judged")
    through = sum(not verdict.refuses for verdict in verdicts)
    warned = sum(verdict.status == "warn" for verdict in verdicts)
    rules = sum(len(verdict.findings) for verdict in verdicts)
    note = f"{rules:,} rules applied" + (f"; {warned} passed with a warning" if warned else "")
    return Fact("Gates passed", f"{through} of {len(verdicts)}", note)


def _perplexity_fact(by_rung: Mapping[str, float]) -> Fact:
    name = "Held-out perplexity"
    before, after = by_rung.get("baseline"), by_rung.get("tuned")
    if before is None:
        return Fact(name, "not measured")
    if after is None:
        return Fact(name, number(before), "baseline only: nothing was tuned")
    note = f"{ratio(_quotient(after, before))} after tuning, lower is better"
    return Fact(name, f"{number(before)} → {number(after)}", note)


def _stops_fact(samples: Sequence[Sample]) -> Fact:
    name = "Answers that end by themselves"
    if not samples:
        return Fact(name, "not sampled")
    before, after = (sum(s.before_stopped for s in samples), sum(s.after_stopped for s in samples))
    return Fact(name, f"{before} → {after} of {len(samples)}", "before → after tuning")


def _time_fact(seconds: Mapping[str, float]) -> Fact:
    if not seconds:
        return Fact("Time", "not measured")
    longest = max(seconds, key=lambda step: seconds[step])
    return Fact("Time", duration(math.fsum(seconds.values())), f"longest step: {longest}")


def _training_facts(curve: Sequence[CurvePoint]) -> tuple[Fact, ...]:
    if not curve:
        return ()
    heldout = {point.step: point.heldout_loss for point in curve if point.heldout_loss is not None}
    finite = [(loss, step) for step, loss in heldout.items() if math.isfinite(loss)]
    best = f"at step {min(finite)[1]:,}" if finite else "no finite measurement"
    broken = [point.step for point in curve if not math.isfinite(point.loss)]
    return (
        Fact("Optimizer steps", number(len(curve)), f"{len(heldout):,} of them with a held-out measurement"),
        Fact(
            "Train loss",
            f"{number(curve[0].loss)} → {number(curve[-1].loss)}",
            "nats per token, first → last step",
        ),
        Fact("Best held-out loss", number(min(finite)[0] if finite else None), best),
        Fact("Largest gradient norm", number(_largest([point.grad_norm for point in curve])), "before clipping"),
        Fact("Highest learning rate", number(_largest([point.learning_rate for point in curve]))),
        Fact("Steps with a loss that is no finite number", number(len(broken)), _listed(broken)),
    )


def _largest(values: Sequence[float]) -> float:
    """NaN where any value is, so that a broken step is not hidden behind a larger one."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _listed(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    rest = f" and {len(steps) - MOST_STEPS:,} more" if len(steps) > MOST_STEPS else ""
    return "steps " + ", ".join(str(step) for step in steps[:MOST_STEPS]) + rest


def _steps(record: AttemptRecord) -> tuple[Step, ...]:
    perplexities = {rung.name: rung.nll.perplexity for rung in record.ladder}
    return tuple(_step(rung, perplexities, record.comparisons.get(rung.name)) for rung in record.ladder)


def _step(rung: Rung, perplexities: Mapping[str, float], compared: Comparison | None) -> Step:
    value, first = rung.nll.perplexity, next(iter(perplexities))
    if rung.name == first:
        return Step(rung, "", None, "", None)
    previous = _quotient(value, perplexities[rung.above]) if rung.above in perplexities else None
    interval = ""
    if rung.above and compared and not compared.problem:
        sure = 100 * (1 - 2 * compared.alpha)
        interval = f"{ratio(compared.low)} to {ratio(compared.high)} ({sure:.4g} %)"
    made = f"{rung.step} of {rung.above}" if rung.above else ""
    return Step(rung, made, previous, interval, _quotient(value, perplexities[first]))


def _quotient(value: float, by: float) -> float:
    return value / by if by else math.nan


def _length_facts(lengths: Histogram | None) -> tuple[Fact, ...]:
    if lengths is None:
        return ()
    return (
        Fact("Rows", number(lengths.values), f"{lengths.total:,} tokens together"),
        Fact("Shortest", number(lengths.smallest), "tokens"),
        Fact("Median", number(lengths.median), "tokens"),
        Fact("90% have at most", number(lengths.ninetieth), "tokens"),
        Fact("Longest", number(lengths.largest), "tokens"),
    )


def _share_facts(shares: Histogram | None) -> tuple[Fact, ...]:
    if shares is None:
        return ()
    return (
        Fact("Median share", f"{shares.median}%", "of a row's tokens"),
        Fact("Smallest share", f"{shares.smallest}%", "of a row's tokens"),
        Fact("Largest share", f"{shares.largest}%", "of a row's tokens"),
    )


def _token_limit(record: AttemptRecord) -> int | None:
    data = record.opened.config.get("data")
    limit = data.get("max_tokens") if isinstance(data, dict) else None
    return limit if isinstance(limit, int) else None
