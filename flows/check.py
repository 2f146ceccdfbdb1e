"""Config, card gate, data gate and plan gate only: what a person runs before a night of training."""

from prefect import flow

from loragate.summary import summary
from tasks.attempts import rehearsed
from tasks.card_gate import card_gate
from tasks.check_rows import fix_rows
from tasks.fetch_base import fetch_base
from tasks.gates import data_gate, plan_gate
from tasks.plan_training import plan_training
from tasks.prepare_rows import prepare_rows


@flow(name="check", persist_result=False, validate_parameters=False)
def check_data(
    config: str, home: str | None = None, overrides: list[str] | None = None, fix: str | None = None
) -> dict[str, object]:
    """Judge the data and the plan of a run file; what was computed on the way is reused by a later release.

    With `fix`, a cleaned copy of the data files is written into that folder first.
    """
    with rehearsed(config, home, overrides) as attempt:
        base = card_gate(attempt, fetch_base(attempt))
        rows = prepare_rows(attempt, base)
        if fix is not None:
            fix_rows(attempt, rows, fix)
        rows = data_gate(attempt, rows)
        plan_gate(attempt, plan_training(attempt, base, rows))
    return dict(summary(attempt.journal.read(), report=str(attempt.home.report(attempt.id, "checks"))))
