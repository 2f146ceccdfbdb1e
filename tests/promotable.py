"""A home with hand-made releases that have passed every gate and wait to be promoted: no training behind them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from commands import write_run
from sealed_home import fill

from loragate.attempt import Attempt
from loragate.candidate import release_digest
from loragate.config import load
from loragate.home import Home, find_home
from loragate.promotion import Promotion
from tasks.attempts import opened
from tasks.promote import promote_release
from tasks.release_keys import open_chain
from tasks.seal_release import Sealed, seal_release


@dataclass(frozen=True, slots=True)
class Promotable:
    """A run file, and the folder that it lies in."""

    folder: Path

    @property
    def home(self) -> Home:
        """Its home."""
        return find_home(None, load(self.folder / "run.yaml"))

    def passed(self, number: int, judged_against: str | None, goal: str = "champion") -> Attempt:
        """Put an attempt on record that has passed every gate, with files of its own."""
        run = load(self.folder / "run.yaml", [f"train.seed={number}", f"record.promote={goal}"])
        attempt = Attempt(run, self.home)
        attempt.chain = open_chain(run, self.home)
        opened(attempt)
        fill(attempt, self.folder / "made" / str(number), number)
        if judged_against is not None:
            attempt.note("incumbent", "", judged_against)
        return attempt

    def released(self, number: int, judged_against: str | None = None, goal: str = "champion") -> Promotion:
        """Make such an attempt and promote it."""
        return promoted(self.passed(number, judged_against, goal))


def promoted(attempt: Attempt) -> Promotion:
    """Promote what an attempt made, as the road's last step does."""
    return promote_release(attempt, release_digest(attempt.journal.read(), attempt.config), sealed(attempt))


def sealed(attempt: Attempt) -> Sealed:
    """Seal what an attempt made, or find that it is sealed."""
    return seal_release(attempt, release_digest(attempt.journal.read(), attempt.config))


def promotable(folder: Path, new_home: Path | None = None) -> Promotable:
    """Write a run file with a home of its own, a copy of a new one where that is given."""
    folder.mkdir(parents=True, exist_ok=True)
    write_run(folder, folder / "no-model")
    here = Promotable(folder)
    if new_home is not None:
        shutil.copytree(new_home, here.home.root)
    return here
