"""The model card's text: seven items, each filled from the record, and flagged where nobody has stated it.

The metadata that a hub reads above it is written by `loragate.engines.hub_card`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from loragate import __version__
from loragate.config import plain
from loragate.evidence import hardware, seeds, training_flops
from loragate.facts import Facts, compared_on, finite, without_folders

NOT_STATED = "**not stated**"
NONE = "none"
FIRST = "none: first release"
HEADINGS = (
    "1. Base and licence",
    "2. Data",
    "3. Method",
    "4. Run",
    "5. Evaluation",
    "6. Artifacts",
    "7. Intended use, limits, waivers, rollback target",
)
MARKUP = re.compile(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)")
"""What Markdown reads as more than a character; an underscore inside of a word is none of that."""
Rows = Iterable[Sequence[object]]


def text(facts: Facts) -> str:
    """The card below its metadata, in Markdown."""
    parts = (_base, _data, _method, _run, _evaluation, _artifacts, _use)
    blocks = [f"# {facts.config.model}", _about(facts)]
    for heading, part in zip(HEADINGS, parts, strict=True):
        blocks += [f"## {heading}", *part(facts)]
    return "\n\n".join(blocks) + "\n"


def _about(facts: Facts) -> str:
    missing = ", ".join(f"`{item}`" for item in facts.not_stated)
    flagged = f" Nobody has stated {missing}: the run file's section `card` is where to." if missing else ""
    return (
        f"A LoRA adapter of {cell(facts.said['base_model'] or 'a local base model')}, released by loragate "
        f"{__version__} after every gate passed or was waived. What stands here is taken from the signed record in "
        f"this folder; what is not on record is marked {NOT_STATED}.{flagged}"
    )


def _base(facts: Facts) -> Iterator[str]:
    said = facts.said
    names = {"base_model": "Base model", "base_licence": "Licence of the base", "licence": "Licence of this release"}
    rows = [(name, told(said[item])) for item, name in names.items()]
    if said["licence"] and not facts.config.card.licence:
        rows[-1] = (names["licence"], f"{said['licence']} (the base's; nobody has stated another)")
    plan = facts.record.plan
    rows += [
        ("Digest of the base (SHA-256)", told(facts.inputs.get("base_model", ""))),
        ("Parameters of the base", f"{plan.model.parameters:,}" if plan else NOT_STATED),
        ("Language", told(said["language"])),
    ]
    yield table(("", ""), rows)


def _data(facts: Facts) -> Iterator[str]:
    plan, compared = facts.record.plan, facts.record.comparisons.get("tuned")
    rows = [
        ("Description", told(facts.said["data_description"])),
        ("Licence", told(facts.said["data_licence"])),
        ("Training rows an epoch", f"{plan.rows.rows:,}" if plan else NOT_STATED),
        ("Tokens an epoch, taught ones", f"{plan.rows.tokens:,}, {plan.rows.supervised:,}" if plan else NOT_STATED),
        ("Held-out rows", f"{compared.rows:,}" if compared else NOT_STATED),
    ]
    yield table(("", ""), rows)
    files = [(name, digest) for name, digest in facts.inputs.items() if name not in ("base_model", "data")]
    yield table(("Input", "SHA-256"), [("all rows", told(facts.inputs.get("data", ""))), *files])


def _method(facts: Facts) -> Iterator[str]:
    merge = facts.record.merge
    yield (
        "Supervised fine-tuning of a low-rank adapter: the loss is the mean negative log-likelihood of the answers' "
        "tokens, the token that stops them included."
    )
    yield table(("Key", "Value"), [(f"train.{name}", value) for name, value in facts.settings.items()])
    if merge:
        yield f"Merged into the {merge.chosen} base in {merge.dtype}, {cell(without_folders(merge.way))}."


def _run(facts: Facts) -> Iterator[str]:
    record = facts.record
    flops, plan = training_flops(record), record.plan
    rows: list[tuple[str, object]] = [
        ("Attempt", record.opened.attempt),
        ("Started", record.opened.started),
        ("Commit of loragate", record.opened.environment.get("loragate_commit") or NOT_STATED),
        ("Hardware", ", ".join(f"{name} {value}" for name, value in hardware(record).items() if value) or NOT_STATED),
        ("Optimizer steps", f"{plan.steps:,} in {plan.epochs:,} epochs" if plan else NOT_STATED),
        ("Training time in seconds", record.seconds.get("train", NOT_STATED)),
        ("Floating-point operations (estimate)", f"{flops['estimate']:.3g}" if flops else NOT_STATED),
        ("Seeds", ", ".join(f"{name} {value}" for name, value in seeds(plain(facts.config)).items())),
        ("Versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items()) or NOT_STATED),
    ]
    yield table(("", ""), rows)


def _evaluation(facts: Facts) -> Iterator[str]:
    record = facts.record
    yield "Perplexity is exp(nats / tokens) over the answers' tokens, the token that stops them included."
    rungs = [
        (rung.name, number(rung.nll.perplexity), f"{rung.nll.tokens:,}") for rung in (*record.ladder, *record.general)
    ]
    yield table(("Model", "Perplexity", "Tokens"), rungs)
    compared = [
        (name, compared_on(name), f"{found.rows:,}", number(found.ratio), number(found.low), number(found.high))
        for name, found in record.comparisons.items()
    ]
    if compared:
        yield table(("Comparison", "Rows", "Number", "Ratio of perplexities", "At least", "At most"), compared)
    tasks = [
        (name, task.unit, task.documents, number(task.base), number(task.tuned))
        for name, task in record.benchmarks.items()
    ]
    if tasks:
        yield table(("Task", "Metric", "Documents", "Base", "Tuned"), tasks)
    gates = [(verdict.gate, verdict.status, len(verdict.findings)) for verdict in record.verdicts]
    yield table(("Gate", "Status", "Rules"), gates)
    yield "Every rule with its value and limit is in `gates.json`, every row's sums are in `scores/`."


def _artifacts(facts: Facts) -> Iterator[str]:
    yield table(("File", "SHA-256"), sorted(facts.files.items()))
    merged = facts.record.artifacts.get("merged")
    if merged:
        yield f"The merged weights follow from base and adapter; their digest is {merged.digest}."
    yield f"Release {facts.release}. `loragate verify DIR` checks every file and the signature."


def _use(facts: Facts) -> Iterator[str]:
    names = {
        "intended_use": "Intended use",
        "out_of_scope": "Out of scope",
        "limits": "Limits",
        "human_oversight": "Human oversight",
        "contact": "Contact",
    }
    rows = [(name, told(facts.said[item])) for item, name in names.items()]
    rows += [
        ("Warnings of the gates", "; ".join(f"{rule}: {found}" for rule, found in facts.warnings.items()) or NONE),
        ("Waivers", "; ".join(facts.waivers) or NONE),
        ("Rollback target", facts.rollback or FIRST),
    ]
    yield table(("", ""), rows)


def told(value: str) -> str:
    """A value as the card has it, flagged where there is none."""
    return value or NOT_STATED


def number(value: float) -> str:
    """A number with six digits, or that it is not finite."""
    return "not finite" if finite(value) is None else f"{value:.6g}"


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table; a line that says so where it has no rows."""
    lines = [" | ".join(map(cell, row)) for row in rows]
    if not lines:
        return f"{head[0]}: {NOT_STATED}."
    return "\n".join(f"| {line} |" for line in (" | ".join(head), " | ".join("---" for _ in head), *lines))


def cell(value: object) -> str:
    """A value on one line of a table, in which nothing is markup but what this module writes itself."""
    if value == NOT_STATED:
        return NOT_STATED
    listed = ", ".join(map(_written, value)) if isinstance(value, list | tuple) else _written(value)
    line = " ".join("".join(each if each.isprintable() else " " for each in listed).split())
    return MARKUP.sub(r"\\\g<0>", line)


def _written(value: object) -> str:
    """A value as the run file writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
