"""Seal a release that passed every gate, put it on record and into MLflow's registry."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, recipe
from loragate.candidate import release_digest
from loragate.errors import BlockedError
from loragate.narration import tell
from loragate.record import as_plain, read_as
from loragate.summary import summary
from tasks.policies import STEP
from tasks.promote import promote_release
from tasks.seal_release import seal_release


@dataclass(frozen=True, slots=True)
class Registered:
    """A model version and the attempt that made it."""

    version: str
    attempt: str


@task(name="register release", **STEP)
def register_release(attempt: Attempt) -> dict[str, object]:
    """Seal, register and promote what the attempt made, or find that an earlier attempt released exactly this.

    Raises:
        BlockedError: Another release became champion since this one was judged; it is on record as a candidate.
        OutageError: MLflow does not do as asked; the release is on record, and a reconciliation registers it.
    """
    record = attempt.journal.read()
    digest = release_digest(record, attempt.config)
    steps = recipe("release", {"release": digest}, code=(), settings={"tracking_uri": attempt.tracking_uri})

    def make(_: Path) -> object:
        promotion = promote_release(attempt, digest, seal_release(attempt, digest))
        if promotion.lost:  # the step is not done: the same run, judged against today's champion, may do better
            raise BlockedError(promotion.lost)
        return Registered(promotion.version, promotion.intent.attempt)

    # Not `attempt.build`: it notes a step's time after the step, and nothing may follow the journal's last line.
    stored = attempt.home.store.build(steps, lambda folder: as_plain(make(folder)))
    registered = read_as(Registered, stored.value)
    tell(f"{'release':>12}  {'reused' if stored.reused else f'version {registered.version}'}")
    if registered.attempt != attempt.id:
        attempt.forget()
    released = attempt.home.told(registered.attempt)
    return dict(summary(released, report=str(attempt.home.report(registered.attempt))))
