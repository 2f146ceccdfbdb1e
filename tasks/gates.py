"""The gates as tasks: judge, settle. A refusal is a result: it is on record before it ends the road."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact

from checks import data, gguf_file, merge, quality, training
from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.config import plain
from loragate.errors import GateRefusedError
from loragate.record import Sample
from loragate.refs import Ref
from loragate.verdicts import Verdict
from loragate.work import CheckFacts, FindNear, GgufEvidence, MergeEvidence, RuleResult
from tasks.models import first_questions, first_references
from tasks.policies import STEP
from tasks.train_adapter import Adapter


@task(name="data gate", **STEP)
def data_gate(attempt: Attempt, rows: Rows) -> None:
    """Refuse rows that cannot teach the model to answer and to stop."""
    settle(attempt, data.judge(_expectations(attempt, rows)))


@task(name="training gate", **STEP)
def training_gate(attempt: Attempt, adapter: Adapter) -> None:
    """Refuse a training that was not finite, did not reach every module, or left nothing."""
    settle(attempt, training.judge(adapter.trained, adapter.evidence, attempt.config.gates.training))


@task(name="quality gate", **STEP)
def quality_gate(attempt: Attempt, baseline: Measurement, tuned: Measurement, rows: Rows) -> None:
    """Refuse a tuned model that is worse than the base on held-out rows, or does not stop."""
    attempt.note("samples", "", _samples(baseline, tuned, rows))
    settle(attempt, quality.judge(baseline.total, tuned.total, tuned.answers, attempt.config.gates.quality))


@task(name="merge gate", **STEP)
def merge_gate(attempt: Attempt, evidence: MergeEvidence) -> None:
    """Refuse merged weights that are not what was trained."""
    settle(attempt, merge.judge(evidence, attempt.config.gates.merge))


@task(name="GGUF gate", task_run_name="GGUF gate {name}", **STEP)
def gguf_gate(attempt: Attempt, name: str, evidence: GgufEvidence, merged: Measurement, base: FetchedBase) -> None:
    """Refuse a GGUF file that is not the merged model."""
    settle(attempt, gguf_file.judge(name, evidence, merged.total, base.base, attempt.config.gates.gguf))


def settle(attempt: Attempt, verdict: Verdict) -> None:
    """Put a verdict on record, show it, and raise where it refuses.

    Raises:
        GateRefusedError: The verdict refuses; the message is the verdict.
    """
    attempt.settle(verdict)
    rows: list[dict[str, object]] = [
        {"rule": f.rule, "passed": f.passed, "detail": f.detail, "severity": f.severity} for f in verdict.findings
    ]
    key = f"{attempt.config.model}-{verdict.gate}-gate".lower().replace("_", "-").replace(".", "-")
    create_table_artifact(table=rows, key=key, description=verdict.sentence)
    if verdict.refuses:
        raise GateRefusedError(verdict.sentence)


def _expectations(attempt: Attempt, rows: Rows) -> tuple[RuleResult, ...]:
    limits = attempt.config.gates.data
    near = _near(attempt, rows)
    steps = recipe(
        "facts",
        {"rows": rows.digest, "near": near.digest},
        code=("loragate.engines.expectations",),
        libraries=("great_expectations", "pandas"),
        settings=plain(limits),
    )

    def make(folder: Path) -> object:
        request = CheckFacts(rows.file("facts.jsonl"), f"{near.path}/near.jsonl", limits, str(folder))
        return attempt.call("loragate.engines.expectations:check_facts", request)

    stored, results = attempt.build(steps, tuple[RuleResult, ...], make)
    attempt.note("artifact", "great_expectations", stored.ref)
    return results


def _near(attempt: Attempt, rows: Rows) -> Ref:
    jaccard = attempt.config.gates.data.near_jaccard
    code, libraries = ("loragate.engines.near_duplicates", "loragate.rows"), ("rensa",)
    steps = recipe("near", {"rows": rows.digest}, code=code, libraries=libraries, settings={"jaccard": jaccard})
    target = "loragate.engines.near_duplicates:find_near"
    stored, _ = attempt.build(
        steps, dict[str, int], lambda folder: attempt.call(target, FindNear(rows.folder, jaccard, str(folder)))
    )
    return stored.ref


def _samples(baseline: Measurement, tuned: Measurement, rows: Rows) -> tuple[Sample, ...]:
    number = len(tuned.answers)
    asked = zip(first_questions(rows, number), first_references(rows, number), strict=True)
    return tuple(
        Sample(question.messages[-1].said, reference, before.text, after.text, before.stopped, after.stopped)
        for (question, reference), before, after in zip(asked, baseline.answers, tuned.answers, strict=True)
    )
