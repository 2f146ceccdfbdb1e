"""What has become of a model's attempts: their journals and the promotion log, put together.

A journal ends with its attempt. What happens later (a version that MLflow gave after an outage, a promotion, a
rollback) is in the log alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from loragate.promotion import CHAMPION, Line, Promotion, lineage, promotions, standing
from loragate.record import AttemptRecord


@dataclass(frozen=True, slots=True)
class Standings:
    """A model's attempts and its log.

    Attributes:
        records: By the journals, oldest first.
        embedded: Address of the MLflow store in the home, which the log calls by an empty name.
        promotions: Every promotion of the log, in the order in which they were prepared.
    """

    records: tuple[AttemptRecord, ...]
    lines: tuple[Line, ...]
    embedded: str
    promotions: tuple[Promotion, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Read the promotions off the lines, once."""
        object.__setattr__(self, "promotions", promotions(self.lines))

    @property
    def told(self) -> list[AttemptRecord]:
        """The records, with version and aliases as they are now."""
        places = self._places()
        stores = {store for store, _ in places.values()}
        now = {store: standing(self.lines, store, self.before(store)) for store in stores}
        return [self._told(record, places, now) for record in self.records]

    def _told(
        self, record: AttemptRecord, places: dict[str, tuple[str, str]], now: dict[str, dict[str, str]]
    ) -> AttemptRecord:
        place = places.get(record.opened.attempt)
        if place is None or record.closed is None:
            return record
        store, version = place
        aliases = tuple(alias for alias, owner in now[store].items() if owner == version)
        if self._is_old(record):  # from before there was a log, which knew no aliases but these two
            aliases = tuple(alias for alias in record.closed.aliases if alias != CHAMPION or alias in aliases)
            aliases += tuple(a for a, owner in now[store].items() if owner == version and a not in aliases)
        return replace(record, closed=replace(record.closed, version=version, aliases=aliases))

    @property
    def stores(self) -> list[str]:
        """Every MLflow store that has heard of a release, the latest first."""
        newest = [promotion.intent.store for promotion in reversed(self.promotions)]
        return list(dict.fromkeys([*newest, *(store for store, _ in self._places().values())]))

    def champions(self, store: str) -> list[AttemptRecord]:
        """Releases that led to today's champion in a store, the champion first; none where it has none."""
        places = self._places()
        newest = {place: record for record in self.told for place in [places.get(record.opened.attempt)] if place}
        found = [newest.get((store, version)) for version in reversed(self.lineage(store))]
        return [record for record in found if record is not None]

    def lineage(self, store: str) -> tuple[str, ...]:
        """Versions that led to today's champion, which is the last."""
        return lineage(self.lines, store, self.before(store))

    def standing(self, store: str) -> dict[str, str]:
        """Which version has which alias."""
        return standing(self.lines, store, self.before(store))

    def released(self, digest: str, store: str) -> Promotion | None:
        """The promotion that brought a release of this digest into the store, None where none did."""
        done = [p for p in self.promotions if p.intent.kind == "release" and p.outcome in ("champion", "candidate")]
        return next((p for p in reversed(done) if (p.intent.digest, p.intent.store) == (digest, store)), None)

    def find(self, version: str, store: str) -> AttemptRecord | None:
        """The newest attempt behind a version."""
        places = self._places()
        found = [record for record in self.told if places.get(record.opened.attempt) == (store, version)]
        return found[-1] if found else None

    def _places(self) -> dict[str, tuple[str, str]]:
        """Store and version of each attempt's release."""
        found = {
            record.opened.attempt: (self._store(record), record.closed.version)
            for record in self.records
            if record.closed is not None and record.closed.version is not None
        }
        return found | {p.intent.attempt: (p.intent.store, p.version) for p in self.promotions if p.version}

    def _store(self, record: AttemptRecord) -> str:
        uri = record.tracked.uri if record.tracked else self.embedded
        return "" if uri == self.embedded else uri

    def _is_old(self, record: AttemptRecord) -> bool:
        return all(p.intent.attempt != record.opened.attempt or p.intent.kind != "release" for p in self.promotions)

    def before(self, store: str) -> Sequence[str]:
        """Versions that became champion before there was a log, oldest first."""
        return [
            record.closed.version
            for record in self.records
            if record.closed is not None
            and record.closed.version is not None
            and CHAMPION in record.closed.aliases
            and self._is_old(record)
            and self._store(record) == store
        ]
