"""Known defects planted into copies of a run, one at a time: which gate catches which?"""

from prefect import flow

from flows.release import release_model, walk
from loragate.defects import tally
from tasks.sabotage import chosen, inspected, planted, sound_run
from tasks.tamper_record import tamper_record


@flow(name="sabotage", persist_result=False, validate_parameters=False)
def sabotage(
    config: str,
    home: str | None = None,
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    without: list[str] | None = None,
) -> dict[str, object]:
    """Release the run as it is, or find that it is released; then walk the road once for each defect.

    What is altered in the record of a release is altered in copies of it, and verified. Gates in `without` judge and do
    not refuse: what the others catch in their place is seen then.
    """
    defects = chosen(only)
    released = release_model(config, home, overrides)
    with inspected(config, home, overrides) as attempt:
        sound = sound_run(attempt)
        for defect in defects.on_the_road:
            with planted(attempt, defect, sound, without or []) as sabotaged:
                walk(sabotaged)
        tamper_record(attempt, str(released["attempt"]), defects.of_the_record, without or [])
    return tally(attempt.journal.read().planted)
