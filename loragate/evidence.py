"""What is written into a release's bundle beside what ships: its settings, gates, scores, and where it came from.

Nothing in it depends on the machine's folders, and no address or key of a server goes along: the evidence is made from
the record, with paths left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import JsonValue

from loragate import __version__
from loragate.bundle import FORMAT
from loragate.chain import Head
from loragate.config import Config, plain
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, as_plain
from loragate.refs import Ref, canonical, digest_bytes, digest_json
from loragate.waivers import WaiverFile

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:loragate:release:1"
SCORES = "scores"
PLACES = ("home", "record")
"""Sections of a run file that say where things are kept, not what is made."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Digests of what a release was made by, which its record does not have.

    Attributes:
        template, tokenizer, model_config: Of what lies beside the merged weights.
        code: Of every module of this program.
        lock: Of requirements.lock; None where the program was installed without it.
        left_out: Files beside the merged weights that no bundle may hold, with their digests.
    """

    template: str
    tokenizer: str
    model_config: str
    code: str
    lock: str | None
    left_out: Mapping[str, str]


def settings(config: Config) -> dict[str, JsonValue]:
    """The whole run file with defaults, without the places that are the machine's own."""
    return {name: value for name, value in plain(config).items() if name not in PLACES}


Digests = Mapping[str, str]


def judged(events: Iterable[tuple[str, str, JsonValue]]) -> dict[str, Digests]:
    """What each gate had before it, by the journal's own order: digests of inputs, artifacts and scores."""
    known: dict[str, str] = {}
    found: dict[str, Digests] = {}
    for event, name, value in events:
        if event == "input":
            known[name] = str(value)
        elif event in ("artifact", "scores") and isinstance(value, dict):
            known[name if event == "artifact" else f"{SCORES}/{name}"] = str(value["digest"])
        elif event == "verdict":
            found[name] = dict(known)
    return found


def evidence(
    record: AttemptRecord, config: Config, inputs: Mapping[str, Digests], scores: Mapping[str, Sequence[Nll]]
) -> dict[str, bytes]:
    """The files of a bundle that are evidence, by name; `inputs` is what each gate had before it."""
    rows = {f"{SCORES}/{name}": score_lines(found) for name, found in scores.items()}
    digests = {name: digest_bytes(content) for name, content in rows.items()}
    inputs = {gate: {name: digests.get(name, digest) for name, digest in had.items()} for gate, had in inputs.items()}
    return {
        "config.json": canonical(settings(config)),
        "environment.json": canonical(record.opened.environment),
        "gates.json": canonical(gates(record, config, inputs)),
        "record.json": canonical(told(record, config, digests)),
        **{f"{name}.jsonl": content for name, content in rows.items()},
    }


def score_lines(rows: Sequence[Nll]) -> bytes:
    """Sums per row, a line each, in the rows' order; rows are counted from 1 as in the held-out file."""
    lines = (canonical({"row": at, "nats": row.nats, "tokens": row.tokens}) for at, row in enumerate(rows, 1))
    return b"".join(line + b"\n" for line in lines)


def gates(record: AttemptRecord, config: Config, inputs: Mapping[str, Digests]) -> list[dict[str, object]]:
    """Every gate in the order of the road: what lay before it, its limits, what it found, and what was waived."""
    limits = settings(config)["gates"]
    assert isinstance(limits, dict)
    return [
        {
            "gate": verdict.gate,
            "status": verdict.status,
            "inputs": dict(inputs[verdict.gate]),
            "limits": limits.get(verdict.gate.partition("_")[0], {}),
            "findings": [asdict(finding) for finding in verdict.findings],
            "waivers": [asdict(file) for file in waived(record, verdict.gate)],
        }
        for verdict in record.verdicts
    ]


def waived(record: AttemptRecord, gate: str) -> tuple[WaiverFile, ...]:
    """The waivers that a gate honoured, with their signatures."""
    review = record.waivers.get(gate)
    return tuple(review.honoured) if review else ()


def told(record: AttemptRecord, config: Config, scores: Digests) -> object:
    """The whole record, artifacts and scores by digest alone and MLflow's address left out."""
    opened = replace(record.opened, run_file="", config=settings(config))
    value = as_plain(replace(record, opened=opened, tracked=None, closed=None, artifacts={}, scores={}))
    assert isinstance(value, dict)
    digests = {name: ref.digest for name, ref in record.artifacts.items()}
    return {**value, "artifacts": digests, "scores": dict(scores)}


def manifest(
    record: AttemptRecord, config: Config, *, release: str, origins: Origins, head: Head, files: Mapping[str, str]
) -> dict[str, object]:
    """What a release is made of and by, and every file of its bundle."""
    environment = record.opened.environment
    digests = {
        "base": record.inputs.get("base_model"),
        "data": record.inputs.get("data"),
        "template": origins.template,
        "tokenizer": origins.tokenizer,
        "model_config": origins.model_config,
        "settings": digest_json(settings(config)),
        "code": origins.code,
        "environment": digest_json(environment),
        "requirements_lock": origins.lock,
    }
    return {
        "format": FORMAT,
        "model": config.model,
        "release": release,
        "attempt": record.opened.attempt,
        "started": record.opened.started,
        "loragate": __version__,
        "commit": environment.get("loragate_commit"),
        "digests": digests,
        "inputs": record.inputs,
        "artifacts": {name: ref.digest for name, ref in record.artifacts.items()},
        "left_out": dict(origins.left_out),
        "seeds": dict(seeds(plain(config))),
        "hardware": hardware(record),
        "training_flops": training_flops(record),
        "chain": asdict(head),
        "files": dict(files),
    }


def seeds(value: JsonValue, where: str = "") -> dict[str, JsonValue]:
    """Every seed of the run file by its path."""
    if not isinstance(value, dict):
        return {}
    found: dict[str, JsonValue] = {}
    for name, item in value.items():
        path = f"{where}.{name}".lstrip(".")
        found |= {path: item} if name == "seed" else seeds(item, path)
    return found


def hardware(record: AttemptRecord) -> dict[str, object]:
    """What it was trained and judged on, as far as it is on record."""
    environment, plan = record.opened.environment, record.plan
    told = {name: environment.get(name) for name in ("system", "processor", "python")}
    return {**told, **({"device": plan.device.name, "device_bytes": plan.device.memory} if plan else {})}


def training_flops(record: AttemptRecord) -> dict[str, object] | None:
    """Floating-point operations of the training by its plan; None where it was not planned.

    For each token: forward 2 N, gradients of activations 2 N, gradients of the T adapter weights 2 T, and 2 N again
    where activations are recomputed (Kaplan et al. 2020, section 2.1: 2 N a pass; attention over positions left out).
    """
    plan = record.plan
    if plan is None:
        return None
    a_token = 2 * plan.model.parameters * (3 if plan.checkpointing else 2) + 2 * plan.model.trainable
    tokens = plan.rows.tokens * plan.epochs
    return {"estimate": float(a_token * tokens), "tokens": tokens, "per_token": a_token}


def provenance(record: AttemptRecord, config: Config, artifacts: Mapping[str, str], finished: str) -> dict[str, object]:
    """An in-toto statement with SLSA's provenance (version 1) of the files that ship."""
    commit = record.opened.environment.get("loragate_commit", "unknown")
    inputs = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(record.inputs.items())]
    program = {"name": "loragate", "annotations": {"version": __version__, "commit": commit}}
    return {
        "_type": STATEMENT,
        "predicateType": PROVENANCE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(artifacts.items())],
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"config": settings(config)},
                "internalParameters": {},
                "resolvedDependencies": [*inputs, program],
            },
            "runDetails": {
                "builder": {"id": f"urn:loragate:{__version__}"},
                "metadata": {
                    "invocationId": record.opened.attempt,
                    "startedOn": record.opened.started,
                    "finishedOn": finished,
                },
            },
        },
    }


def by_name(record: AttemptRecord) -> AttemptRecord:
    """The record with artifacts named as the bundle has them, for the report inside it."""
    artifacts = {name: Ref(name, ref.digest) for name, ref in record.artifacts.items()}
    return replace(record, artifacts=artifacts, tracked=None, opened=replace(record.opened, run_file="config.json"))
