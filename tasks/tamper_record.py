"""Alter a sealed release's record, one place at a time, and see whether verification finds and names it."""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random

from loragate.attempt import Attempt
from loragate.defects import RECORD, Defect, Planted, Status
from loragate.errors import LoragateError, NotApplicableError, StepError, VerificationError
from loragate.home import Home
from loragate.listing import pick
from loragate.narration import hushed
from loragate.store import copy_linked
from loragate.tampering import ALTERATIONS, Copy
from loragate.verification import verify_release
from tasks.aliases import verify_registered
from tasks.forge_record import FORGERIES
from tasks.release_keys import readers
from tasks.sabotage import put_on_record
from tasks.seal_again import NEWER, Scratch, seal_again

MLFLOW = "mlflow"
"""Place of what only `loragate verify --mlflow` can find."""


def tamper_record(attempt: Attempt, released: str, mutants: Sequence[Defect], without: Sequence[str]) -> None:
    """Seal a release again where it may be spoilt, alter copies of that in one place each, and verify the copies.

    Where verification is among the gates that are left out, nobody is asked. Nothing reaches the home's own releases,
    chain, promotions or MLflow, and no key of the user is touched.

    Args:
        released: Attempt of the home that made the release.
    """
    if not mutants:
        return
    folder = attempt.journal.path.parent / "sealed"
    try:
        with hushed():
            scratch = _sealed(attempt, released, folder)
        for mutant in mutants:
            with hushed():
                found = _tampered(scratch, mutant, without, attempt.config.train.seed)
            put_on_record(attempt, found)
    except NotApplicableError as error:
        for mutant in mutants:
            put_on_record(attempt, Planted(mutant.name, "not applicable", "", (), str(error), 0.0))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sealed(attempt: Attempt, released: str, folder: Path) -> Scratch:
    """A home with such a release, in which verification finds nothing: else it would prove nothing that it finds more.

    Raises:
        NotApplicableError: Nothing can be sealed again.
        StepError: It finds something all the same.
    """
    sound = Attempt(attempt.run, attempt.home)
    sound.id, sound.journal = released, attempt.home.journal(released)
    folder.mkdir(parents=True)
    scratch = seal_again(sound, folder)
    try:
        _verify(scratch.home, scratch.model, in_mlflow=True)
    except VerificationError as error:
        raise StepError(
            f"a release that nobody has altered does not verify, so no alteration says more: {error}"
        ) from None
    return scratch


def _tampered(scratch: Scratch, mutant: Defect, without: Sequence[str], seed: int) -> Planted:
    """Alter a copy and verify it; what was altered in MLflow is taken back."""
    started = time.monotonic()
    copy = _copy(scratch, Random(f"{seed} {mutant.name}"))
    status: Status = "survived"
    said = "nobody verified it" if RECORD in without else "verification found nothing wrong"
    names = ""
    try:
        with ExitStack() as undo:
            plain = ALTERATIONS.get(mutant.name)
            names = plain(copy) if plain else FORGERIES[mutant.name](scratch, copy, undo)
            if RECORD not in without:
                _verify(copy.home, scratch.model, in_mlflow=mutant.place == MLFLOW)
    except NotApplicableError as error:
        status, said = "not applicable", str(error)
    except VerificationError as error:
        said = str(error).replace(f"{copy.home.root}/", "")
        status = "caught" if names in said else "elsewhere"
    except (LoragateError, ValueError) as error:
        said = f"verification did not come to an end: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(copy.home.root)
    gate = RECORD if status in ("caught", "elsewhere") else ""
    return Planted(mutant.name, status, gate, (names,) if status == "caught" else (), said, time.monotonic() - started)


def _copy(scratch: Scratch, chance: Random) -> Copy:
    """A copy of the home, its bytes shared with it."""
    home = Home(scratch.folder / "copy")
    copy_linked(str(scratch.home.root), home.root)
    return Copy(home, scratch.model, scratch.older, scratch.newer, scratch.attempt, scratch.before, chance)


def _verify(home: Home, model: str, *, in_mlflow: bool) -> None:
    """Verify the newer release as `loragate verify` does, with or without --mlflow.

    Raises:
        VerificationError: The first thing wrong.
    """
    record = pick(home, f"{model}@{NEWER}")
    verified = verify_release(home, record, *readers(home), given=False)
    if in_mlflow:
        verify_registered(home, record, verified)
