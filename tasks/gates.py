"""The gates as tasks: judge, settle. A refusal is a result: it is on record before it ends the road."""

from prefect import task
from prefect.artifacts import create_table_artifact

from checks import data, gguf_file, merge, plan, preflight, quality, training
from loragate.answered import Answered
from loragate.artifact_work import MergeEvidence
from loragate.attempt import Attempt, FetchedBase, Measurement, Rows
from loragate.challenge import Challenge
from loragate.comparison import Comparison
from loragate.errors import GateRefusedError
from loragate.ladder import NOT_COMPARED
from loragate.plan import Plan
from loragate.verdicts import Verdict
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
    settle(attempt, data.judge(evidence.checked, attempt.config.gates.data))
    return keep_rows(attempt, rows, evidence)


@task(name="plan gate", **STEP)
def plan_gate(attempt: Attempt, planned: Plan) -> Plan:
    """Refuse a training that cannot work as the run file describes it; warn of what is odd; return the plan."""
    settle(attempt, plan.judge(attempt.config.train, planned, attempt.config.gates.plan))
    return planned


@task(name="preflight gate", **STEP)
def preflight_gate(attempt: Attempt, evidence: PreflightEvidence) -> None:
    """Refuse a training whose arithmetic is not what it should be."""
    settle(attempt, preflight.judge(evidence, attempt.config.gates.preflight))


@task(name="training gate", **STEP)
def training_gate(attempt: Attempt, adapter: Adapter) -> None:
    """Refuse a training that was not finite, did not reach every module, or left nothing."""
    config = attempt.config
    settle(attempt, training.judge(adapter.trained, adapter.evidence, config.train, config.gates.training))


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
    limits = attempt.config.gates.quality
    settle(attempt, quality.judge(compared, general, answered, adapter.trained, limits, challenge))


@task(name="merge gate", **STEP)
def merge_gate(
    attempt: Attempt, merged: Merged, evidence: MergeEvidence, tuned: Measurement, after: Measurement
) -> None:
    """Refuse merged weights that are not what was trained, and a choice that the numbers on record do not bear out."""
    limits, alpha = attempt.config.gates.merge, attempt.config.gates.quality.alpha
    hop = descend(attempt, tuned, after, limits.max_perplexity_ratio)
    from_base = after.divergences.get("baseline", NOT_COMPARED)
    settle(attempt, merge.judge(evidence, hop, from_base, limits, alpha=alpha, merged=merged.how))


@task(name="GGUF gate", task_run_name="GGUF gate {probed.name}", **STEP)
def gguf_gate(attempt: Attempt, probed: Probed, base: FetchedBase) -> Measurement:
    """Refuse a GGUF file that is not the model that it was made from; return its rung of the ladder."""
    limits, alpha = attempt.config.gates.gguf, attempt.config.gates.quality.alpha
    settle(attempt, gguf_file.judge(probed.name, probed.evidence, probed.hop, base.base, limits, alpha=alpha))
    return probed.measured


def settle(attempt: Attempt, verdict: Verdict) -> None:
    """Put a verdict on record, show it, and raise where it refuses and no waiver lets it go.

    Raises:
        GateRefusedError: The verdict refuses; the message is the verdict, and what it takes to waive it.
    """
    verdict = with_waivers(attempt, verdict)
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
