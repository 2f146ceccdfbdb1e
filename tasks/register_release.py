"""Seal a release that passed every gate, put it on record and into MLflow's registry."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task
from pydantic import TypeAdapter

from loragate.attempt import Attempt, recipe
from loragate.candidate import release_digest
from loragate.narration import tell
from loragate.record import AttemptRecord, Closed, as_plain, now, summary
from tasks.attempts import close
from tasks.policies import STEP
from tasks.seal_release import seal_release, seal_tags


@dataclass(frozen=True, slots=True)
class Registered:
    """A model version and the attempt that made it."""

    version: str
    attempt: str


@task(name="register release", **STEP)
def register_release(attempt: Attempt) -> dict[str, object]:
    """Register what the attempt made, or find that an earlier attempt released exactly this."""
    record = attempt.journal.read()
    digest = release_digest(record, attempt.config)
    steps = recipe("release", {"release": digest}, code=(), settings={"tracking_uri": attempt.tracking_uri})

    def make(_: Path) -> object:
        from loragate.engines import tracking

        sealed = seal_release(attempt, digest)
        tracking.upload(attempt, attempt.journal.read())
        version = tracking.register(attempt, digest, seal_tags(sealed))
        message = f"{_passed(record)}: released as {attempt.config.model}@{version}"
        close(attempt, Closed("released", message, now(), version, digest, tracking.ALIASES))
        tracking.close_run(attempt, attempt.journal.read())
        return Registered(version, attempt.id)

    # Not `attempt.build`: it notes a step's time after the step, and nothing may follow the journal's last line.
    stored = attempt.home.store.build(steps, lambda folder: as_plain(make(folder)))
    registered = TypeAdapter(Registered).validate_python(stored.value)
    tell(f"{'release':>12}  {'reused' if stored.reused else f'version {registered.version}'}")
    if stored.reused:
        attempt.forget()
    released = attempt.home.journal(registered.attempt).read()
    return dict(summary(released, report=str(attempt.home.report(registered.attempt))))


def _passed(record: AttemptRecord) -> str:
    """How the gates let the release go."""
    waived = [f"{verdict.gate}/{told}" for verdict in record.verdicts for told in verdict.waived]
    return f"every gate passed or was waived ({'; '.join(waived)})" if waived else "every gate passed"
