"""The gates as tasks: judge, settle. A refusal is a result: it is on record before it ends the road."""

from prefect import task
from prefect.artifacts import create_table_artifact

from checks import data, gguf_file, merge, plan, preflight, quality, training
from loragate.answered import Answered
from loragate.attempt import Attempt, FetchedBase, Measurement, Rows
from loragate.comparison import Comparison
from loragate.errors import GateRefusedError
from loragate.plan import Plan
from loragate.verdicts import Verdict
from loragate.work import GgufEvidence, MergeEvidence, PreflightEvidence
from tasks.check_rows import check_rows, keep_rows
from tasks.merge_adapter import Merged
from tasks.policies import STEP
from tasks.train_adapter import Adapter


@task(name="data gate", **STEP)
def data_gate(attempt: Attempt, rows: Rows) -> Rows:
    """Refuse rows that cannot teach the model to answer and to stop; return those to go on with."""
    evidence = check_rows(attempt, rows)
    settle(attempt, data.judge(evidence.checked, attempt.config.gates.data))
    return keep_rows(attempt, rows, evidence)


@task(name="plan gate", **STEP)
def plan_gate(attempt: Attempt, planned: Plan) -> None:
    """Refuse a training that cannot work as the run file describes it; warn of what is odd about it."""
    settle(attempt, plan.judge(attempt.config.train, planned, attempt.config.gates.plan))


@task(name="preflight gate", **STEP)
def preflight_gate(attempt: Attempt, evidence: PreflightEvidence) -> None:
    """Refuse a training whose arithmetic is not what it should be."""
    settle(attempt, preflight.judge(evidence, attempt.config.gates.preflight))


@task(name="training gate", **STEP)
def training_gate(attempt: Attempt, adapter: Adapter) -> None:
    """Refuse a training that was not finite, did not reach every module, or left nothing."""
    settle(attempt, training.judge(adapter.trained, adapter.evidence, attempt.config.gates.training))


@task(name="quality gate", **STEP)
def quality_gate(attempt: Attempt, compared: Comparison, general: Comparison, answered: Answered) -> None:
    """Refuse a tuned model not shown to be no worse than the base, or to forget too much, or that answers badly."""
    settle(attempt, quality.judge(compared, general, answered, attempt.config.gates.quality))


@task(name="merge gate", **STEP)
def merge_gate(attempt: Attempt, merged: Merged, evidence: MergeEvidence) -> None:
    """Refuse merged weights that are not what was trained, and a choice that the numbers on record do not bear out."""
    settle(attempt, merge.judge(evidence, attempt.config.gates.merge, merged.how))


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
        {"rule": f.rule, "passed": f.passed, "status": f.status, "detail": f.detail, "severity": f.severity}
        for f in verdict.findings
    ]
    key = f"{attempt.config.model}-{verdict.gate}-gate".lower().replace("_", "-").replace(".", "-")
    create_table_artifact(table=rows, key=key, description=verdict.sentence)
    if verdict.refuses:
        raise GateRefusedError(verdict.sentence)
