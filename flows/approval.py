"""Being asked to approve a release: a pause that a person sees, and ends, in Prefect's window.

The window is the place to be asked and never the evidence: Prefect stores what was typed, and not who typed it.
Whatever it is, only approvals that were signed with `loragate approve` are looked at afterwards.
"""

from typing import Literal

from prefect import flow
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from tasks.asking import look_up, require_granted, shown

DAY = 24 * 3600


class Answer(RunInput):
    """What the window asks for: it ends the pause and says nothing else."""

    signed: Literal["yes", "no"]


@flow(name="approval", persist_result=False, validate_parameters=False)
def ask_for_approval(
    release: str, home: str | None = None, config: str | None = None, seconds: int = DAY, poll_seconds: int = 10
) -> dict[str, object]:
    """Ask for what a release still needs, wait until somebody resumes the run, and grant or block by what was signed.

    A run that nobody resumes within `seconds` fails: that is no approval either. Blocked: a failed run, with the reason
    as its message.
    """
    asked = look_up(release, home, config)
    if not asked.standing.granted:
        window = Answer.with_initial_data(description=shown(asked))
        key = f"approval-{asked.case.release}"
        pause_flow_run(wait_for_input=window, timeout=seconds, poll_interval=poll_seconds, key=key)
    return require_granted(asked, home, config)
