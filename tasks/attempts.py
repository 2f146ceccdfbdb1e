"""An attempt from its opening to its end, whatever the end is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loragate.approvers import read_policy
from loragate.attempt import Attempt
from loragate.config import load, plain
from loragate.environment import describe
from loragate.errors import ConfigError, GateRefusedError
from loragate.home import find_home
from loragate.record import AttemptRecord, Closed, Opened, now
from loragate.store import locked, write_atomically
from loragate.task_files import task_files
from tasks.release_keys import open_chain


@contextmanager
def attempted(config: str, home: str | None, overrides: Sequence[str] | None) -> Iterator[Attempt]:
    """Open an attempt, alone for its model in its home, and see that its end is on record.

    Raises:
        ConfigError: The run file or a file it names is wrong; nothing is on record.
        VerificationError: The chain was altered.
        BusyError: Another attempt at the same model is running in this home.
    """
    run = load(Path(config), overrides or ())
    place = find_home(home, run)
    with locked(place.root / "locks" / run.config.model, f"another release of {run.config.model}"):
        attempt = Attempt(run, place)
        attempt.chain = open_chain(run, place)
        opened(attempt)
        try:
            yield attempt
        except ConfigError:
            attempt.forget()
            raise
        except GateRefusedError as refusal:
            end(attempt, Closed("refused", str(refusal), now()))
            raise
        except BaseException as error:
            if attempt.journal.read().closed is None:  # else the release itself is whole, and its promotion is not
                end(attempt, Closed("failed", f"{type(error).__name__}: {error}", now()))
            raise


@contextmanager
def rehearsed(config: str, home: str | None, overrides: Sequence[str] | None) -> Iterator[Attempt]:
    """Open an attempt that only checks: its record is kept apart from the releases', and MLflow hears nothing."""
    run = load(Path(config), overrides or ())
    attempt = Attempt(run, find_home(home, run), "checks")
    opened(attempt)
    try:
        yield attempt
    except GateRefusedError as refusal:
        close(attempt, Closed("refused", str(refusal), now()))
        raise
    close(attempt, Closed("passed", "the data gate and the plan gate passed", now()))


def opened(attempt: Attempt) -> None:
    """Write the first lines of the journal: what the attempt set out to do, and by which tasks it is to be judged.

    Raises:
        ConfigError: A task file or the file of approvers is wrong, or the harness is missing; nothing is on record.
    """
    run, tasks, policy = attempt.run, task_files(attempt.run), read_policy(attempt.run)
    told = Opened(attempt.id, run.config.model, now(), plain(run.config), describe(), str(run.path))
    attempt.note("opened", "", told)
    for each in tasks:
        attempt.note("input", f"task/{each.name}", each.digest)
    if policy is not None:
        attempt.note("approvals", "", policy)


def end(attempt: Attempt, closed: Closed) -> None:
    """Bring an attempt that made no release into MLflow and close it.

    The journal is closed even where MLflow cannot be reached: it is the record. A second Ctrl-C skips the upload, and
    the run is closed all the same.
    """
    from loragate.engines import tracking

    try:
        with tracking.outage_told():
            tracking.upload(attempt, attempt.journal.read())
    finally:
        close(attempt, closed)
        with tracking.outage_told():
            tracking.close_run(attempt, attempt.journal.read())


def close(attempt: Attempt, closed: Closed) -> None:
    """Write the last line of the journal, and the report made from it."""
    attempt.note("closed", "", closed)
    _report(attempt)


def close_again(attempt: Attempt) -> None:
    """Do what is left of closing, where a kill came between the journal's last line and the rest."""
    attempt.chain_end()
    if not attempt.home.report(attempt.id, attempt.kind).is_file():
        _report(attempt)


def _report(attempt: Attempt) -> None:
    from loragate.engines import report

    page = report.render_report(attempt.journal.read(), attempt.kind)
    write_atomically(attempt.home.report(attempt.id, attempt.kind), page)


def passed(record: AttemptRecord) -> str:
    """How the gates let a release go."""
    waived = [f"{verdict.gate}/{told}" for verdict in record.verdicts for told in verdict.waived]
    return f"every gate passed or was waived ({'; '.join(waived)})" if waived else "every gate passed"
