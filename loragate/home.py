"""Where state lives: one folder for run store, record, logs and the embedded MLflow and Prefect data."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loragate.config import RunFile
from loragate.errors import VerificationError
from loragate.places import KEYS, home_root
from loragate.promotion_log import PromotionLog
from loragate.record import AttemptRecord, Journal
from loragate.standings import Standings
from loragate.store import Store

Kind = Literal["record", "checks", "sabotage", "replay"]
PROMOTIONS = "promotions"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds all state of this machine's releases."""

    root: Path

    @property
    def store(self) -> Store:
        """Finished steps, by what went into them."""
        return Store(self.root / "runs")

    @property
    def logs(self) -> Path:
        """Output of child processes and tools."""
        return self.root / "logs"

    @property
    def releases(self) -> Path:
        """Sealed bundles, as MODEL/DIGEST."""
        return self.root / "releases"

    @property
    def chain(self) -> Path:
        """The chain of every event, and its signed head."""
        return self.root / "chain"

    @property
    def keys(self) -> Path:
        """The key to seal with, where no other is named, and the public halves of all that were sealed with."""
        return self.root / KEYS

    @property
    def approvals(self) -> Path:
        """Signed approvals and rejections, as MODEL/DIGEST/KEY.json."""
        return self.root / "approvals"

    @property
    def prefect(self) -> Path:
        """Prefect's own home: its database and settings."""
        return self.root / "prefect"

    @property
    def tracking_uri(self) -> str:
        """The embedded MLflow store."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        """Where the embedded MLflow store keeps files."""
        return self.root / "mlartifacts"

    def journal(self, attempt: str, kind: Kind = "record") -> Journal:
        """The journal of one attempt, or of one check of data alone."""
        return Journal(self.root / kind / attempt / "journal.jsonl")

    def report(self, attempt: str, kind: Kind = "record") -> Path:
        """The HTML report of one attempt, or of one check of data alone."""
        return self.root / kind / attempt / "report.html"

    def promotions(self, model: str) -> PromotionLog:
        """The log of a model's promotions: who is champion."""
        return PromotionLog(self.root / PROMOTIONS / model)

    def promoted_models(self) -> list[str]:
        """Models that have such a log."""
        return sorted(path.parent.name for path in (self.root / PROMOTIONS).glob("*/log.jsonl"))

    def store_name(self, uri: str) -> str:
        """What a log calls an MLflow store: its address, or nothing where it is the one in this home."""
        return "" if uri == self.tracking_uri else uri

    def records(self) -> list[AttemptRecord]:
        """Every attempt on record, oldest first, with version and aliases as they are by the promotion logs.

        One that was killed before its opening line is none.
        """
        found = self.journals()
        models = {record.opened.model for record in found}
        told = {r.opened.attempt: r for model in models for r in self.standings(model, found).told}
        return [told[record.opened.attempt] for record in found]

    def told(self, attempt: str) -> AttemptRecord:
        """One attempt, with version and aliases as they are by the promotion log."""
        record = self.journal(attempt).read()
        return self.standings(record.opened.model, [record]).told[0]

    def standings(self, model: str, records: Sequence[AttemptRecord] | None = None) -> Standings:
        """What the promotion log says about a model's attempts."""
        mine = [r for r in (self.journals() if records is None else records) if r.opened.model == model]
        return Standings(tuple(mine), self.promotions(model).lines(), self.tracking_uri)

    def journals(self) -> list[AttemptRecord]:
        """Every attempt as its own journal has it, oldest first."""
        found = []
        for path in (self.root / "record").glob("*/journal.jsonl"):
            with suppress(VerificationError):
                found.append(Journal(path).read())
        return sorted(found, key=lambda record: (record.opened.started, record.opened.attempt))


def find_home(given: str | None, run: RunFile | None = None) -> Home:
    """Choose the home: what is given, else the run file's, else LORAGATE_HOME, else ./.loragate."""
    if given is None and run is not None and run.config.home is not None:
        return Home(run.resolve(run.config.home).absolute())
    return Home(home_root(given))
