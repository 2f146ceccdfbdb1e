"""The gates as tasks: judge, settle. A refusal is a result: it is on record before it ends the road."""

from prefect import task
from prefect.artifacts import create_table_artifact

from checks import gates
from loragate.answered import Answered
from loragate.artifact_work import MergeEvidence
from loragate.attempt import Attempt, FetchedBase, Measurement, Rows
from loragate.challenge import Challenge
from loragate.comparison import Comparison
from loragate.errors import GateRefusedError
from loragate.grounds import (
    DataGrounds,
    Grounds,
    MergeGrounds,
    PlanGrounds,
    PreflightGrounds,
    QualityGrounds,
    TrainingGrounds,
    measured_steps,
    of_file,
)
from loragate.ladder import NOT_COMPARED
from loragate.plan import Plan
from loragate.work import PreflightEvidence
from tasks.check_rows import check_rows, keep_rows
from tasks.compare_models import descend
from tasks.export_gguf import Probed
from tasks.merge_adapter import Merged
from tasks.policies import STEP
from tasks.train_adapter import Adapter
from tasks.waivers import refusal, with_waivers


@task(name="data gate", **STEP)
def data_gate(attempt: Attempt, rows: Rows) -> Rows:
    """Refuse rows that cannot teach the model to answer and to stop; return those to go on with."""
    evidence = check_rows(attempt, rows)
    settle(attempt, DataGrounds(evidence.checked))
    return keep_rows(attempt, rows, evidence)


@task(name="plan gate", **STEP)
def plan_gate(attempt: Attempt, planned: Plan) -> Plan:
    """Refuse a training that cannot work as the run file describes it; warn of what is odd; return the plan."""
    settle(attempt, PlanGrounds(planned))
    return planned


@task(name="preflight gate", **STEP)
def preflight_gate(attempt: Attempt, evidence: PreflightEvidence) -> None:
    """Refuse a training whose arithmetic is not what it should be."""
    settle(attempt, PreflightGrounds(evidence))


@task(name="training gate", **STEP)
def training_gate(attempt: Attempt, adapter: Adapter) -> None:
    """Refuse a training that was not finite, did not reach every module, or left nothing."""
    settle(attempt, TrainingGrounds(adapter.trained, adapter.evidence))


@task(name="quality gate", **STEP)
def quality_gate(
    attempt: Attempt,
    compared: Comparison,
    general: Comparison,
    answered: Answered,
    challenge: Challenge,
    adapter: Adapter,
) -> None:
    """Refuse a tuned model not shown to be no worse than base and champion, that forgets too much or answers badly."""
    settle(attempt, QualityGrounds(compared, general, answered, measured_steps(adapter.trained), challenge))


@task(name="merge gate", **STEP)
def merge_gate(
    attempt: Attempt, merged: Merged, evidence: MergeEvidence, tuned: Measurement, after: Measurement
) -> None:
    """Refuse merged weights that are not what was trained, and a choice that the numbers on record do not bear out."""
    hop = descend(attempt, tuned, after, attempt.config.gates.merge.max_perplexity_ratio)
    settle(attempt, MergeGrounds(evidence, hop, after.divergences.get("baseline", NOT_COMPARED), merged.how))


@task(name="GGUF gate", task_run_name="GGUF gate {probed.name}", **STEP)
def gguf_gate(attempt: Attempt, probed: Probed, base: FetchedBase) -> Measurement:
    """Refuse a GGUF file that is not the model that it was made from; return its rung of the ladder."""
    settle(attempt, of_file(probed.name, probed.evidence, probed.hop, base.base))
    return probed.measured


def settle(attempt: Attempt, grounds: Grounds) -> None:
    """Put on record what a gate judges by, judge, show the verdict, and raise where it refuses and nobody waives it.

    Raises:
        GateRefusedError: The verdict refuses; the message is the verdict, and what it takes to waive it.
    """
    attempt.note("grounds", grounds.gate, grounds)
    verdict = with_waivers(attempt, gates.judge(grounds, attempt.config))
    attempt.settle(verdict)
    rows: list[dict[str, object]] = [
        {"rule": f.rule, "passed": f.passed, "status": f.status, "detail": f.detail, "severity": f.severity}
        for f in verdict.findings
    ]
    key = f"{attempt.config.model}-{verdict.gate}-gate".lower().replace("_", "-").replace(".", "-")
    if attempt.kind != "sabotage":
        create_table_artifact(table=rows, key=key, description=verdict.sentence)
    if attempt.stops(verdict):
        raise GateRefusedError(refusal(attempt, verdict))
