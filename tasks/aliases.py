"""Move a model's aliases on request: a candidate becomes champion, the champion before comes back, a check of both."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loragate.errors import BlockedError, ConfigError, OutageError, VerificationError
from loragate.home import Home
from loragate.narration import tell
from loragate.promotion import ALIASES, CHAMPION, Intent, Kind, Line, Promotion, moved, unfinished
from loragate.record import AttemptRecord, now
from loragate.verification import Verified, require_tags
from tasks.promote import Place, advance, attempt_again, files_of, finish


@dataclass(frozen=True, slots=True)
class Found:
    """What a reconciliation found about a model.

    Attributes:
        state: `finished` or `open`: a promotion; `moved`: an alias is not where the log put it; `danger`: MLflow has
            lost, or is about to lose, what an alias points to.
    """

    model: str
    state: Literal["finished", "open", "moved", "danger"]
    text: str


def promote(home: Home, record: AttemptRecord, expect: str | None) -> Promotion:
    """Make a release champion, if the champion is still the one it was judged against, or the one that is expected.

    Raises:
        ConfigError: It is no release, or not registered yet.
        BlockedError: Another one is champion.
        OutageError: MLflow does not do as asked; a reconciliation does the rest.
        VerificationError: Its files in MLflow are not those that the gates judged.
    """
    return _ask(home, record, "promotion", _registered(record), expect)


def _registered(record: AttemptRecord) -> str:
    """The version of a release."""
    if record.closed is None or record.closed.version is None:
        raise ConfigError(
            f"{record.opened.attempt}: {record.outcome}, without a version in MLflow (`loragate reconcile` registers "
            "what an outage left)"
        )
    return record.closed.version


def _store(home: Home, record: AttemptRecord) -> str:
    """The store that a release was brought to, as the log calls it."""
    own = [
        p.intent for p in home.standings(record.opened.model).promotions if p.intent.attempt == record.opened.attempt
    ]
    uri = record.tracked.uri if record.tracked else home.tracking_uri
    return own[0].store if own else home.store_name(uri)


def rollback(home: Home, model: str, expect: str | None) -> Promotion:
    """Make the champion before today's champion again; raises as `promote` does."""
    standings = home.standings(model)
    if not standings.records:
        models = ", ".join(sorted({each.opened.model for each in home.journals()})) or "none"
        raise ConfigError(f"{model}: no such model (not a release) in {home.root}; known: {models}")
    for store in standings.stores:
        champions = standings.lineage(store)
        record = standings.find(champions[-2], store) if len(champions) > 1 else None
        if record is not None:
            return _ask(home, record, "rollback", champions[-2], expect)
    raise ConfigError(f"{model}: no champion before today's is on record in {home.root}; nothing to go back to")


def _ask(home: Home, record: AttemptRecord, kind: Kind, version: str, expect: str | None) -> Promotion:
    model = record.opened.model
    log = home.promotions(model)
    with log.alone():
        for earlier in unfinished(log.lines()):
            tell(finish(home, earlier))
        standings = home.standings(model)
        store = _store(home, record)
        champions = standings.lineage(store)
        top = champions[-1] if champions else ""
        if kind == "promotion" and version == top:
            already = _already(home, record, store, expect)
            if already is not None:
                return already
        judged = kind == "promotion" and record.incumbent is not None
        expected = _version(model, expect) if expect is not None else (record.incumbent or "") if judged else top
        assert record.closed is not None
        intent = Intent(
            secrets.token_hex(8),
            kind,
            model,
            record.opened.attempt,
            record.closed.digest or "",
            store,
            CHAMPION,
            expected,
            files_of(home, record),
            named=expect is not None,
            version=version,
        )
        attempt = attempt_again(home, record.opened.attempt, store)
        place = Place(home, model, attempt.tracking_uri, attempt.chain)
        done = advance(place, log.prepare(intent), None)
    if done.lost:
        raise BlockedError(done.lost)
    return done


def _already(home: Home, record: AttemptRecord, store: str, expect: str | None) -> Promotion | None:
    """The promotion that made today's champion; None where MLflow has another one by now.

    Raises:
        BlockedError: Another champion is expected.
    """
    from loragate.engines import registry

    model, uri = record.opened.model, store or home.tracking_uri
    with registry.asking(uri):
        found = registry.aliases(uri, model).get(CHAMPION, "")
    version = _registered(record)
    if found != version:
        return None
    if expect is not None and _version(model, expect) != version:
        raise BlockedError(f"{model}@{version} is champion already, and not to replace {expect}; nothing was done")
    tell(f"{'champion':>12}  already; nothing is done")
    done = [each for each in home.standings(model).promotions if each.flipped and each.intent.store == store]
    return next((each for each in reversed(done) if each.version == version), None)


def _version(model: str, expect: str) -> str:
    """The version that a person means by MODEL@N, N or none."""
    version = expect.removeprefix(f"{model}@")
    if version == "none":
        return ""
    if not version.isdecimal():
        raise ConfigError(f"--expect {expect}: write {model}@N, N, or none")
    return version


def reconcile(home: Home, model: str | None, *, looks: bool = False) -> list[Found]:
    """Finish or undo what a kill or an outage left half done, then hold MLflow's aliases against the log.

    Args:
        model: Of this one alone; None: of all.
        looks: Only look, and change nothing.

    Raises:
        ConfigError: There is no such model.
    """
    found: list[Found] = []
    known = home.promoted_models()
    if model is not None and model not in known:
        told = f"known: {', '.join(known)}" if known else "no model is"
        raise ConfigError(f"{model}: no release of it is on record in {home.root}; {told}. --home chooses another home")
    for name in [model] if model else known:
        with home.promotions(name).alone():
            found += [_finished(home, each, looks=looks) for each in unfinished(home.promotions(name).lines())]
            for store in home.standings(name).stores:
                found += _held(Place(home, name, store or home.tracking_uri), looks=looks)
    return found


def _finished(home: Home, promotion: Promotion, *, looks: bool) -> Found:
    model = promotion.intent.model
    if looks:
        return Found(
            model, "open", f"{promotion.name}: half done, next: {promotion.step}; `loragate reconcile` goes on"
        )
    text = finish(home, promotion)
    ids = {each.intent.id for each in unfinished(home.promotions(model).lines())}
    return Found(model, "open" if promotion.intent.id in ids else "finished", text)


def _held(place: Place, *, looks: bool) -> list[Found]:
    """Hold a model's aliases in MLflow against the log, and what they point to against what MLflow still has."""
    from loragate.engines import registry

    known = place.home.standings(place.model).standing(place.store)
    try:
        with registry.asking(place.uri):
            found = registry.aliases(place.uri, place.model)
            told = [Found(place.model, "danger", text) for text in registry.dangers(place.uri, place.model, known)]
    except OutageError as error:
        return [Found(place.model, "open", f"{place.model}: its aliases cannot be looked at: {error}")]
    for text in _moved(place, found):
        told.append(Found(place.model, "moved", text))
        if not looks:
            _note_moved(place, text)
    return told


def _moved(place: Place, owners: Mapping[str, str]) -> list[str]:
    """Say which aliases MLflow has elsewhere than the log."""
    known = place.home.standings(place.model).standing(place.store)
    return [
        moved(place.model, alias, owners.get(alias, ""), known.get(alias, ""))
        for alias in ALIASES
        if owners.get(alias) != known.get(alias)
    ]


def _note_moved(place: Place, text: str) -> None:
    """Write into the log that somebody moved an alias, once."""
    log = place.home.promotions(place.model)
    last = [line for line in log.lines() if line.happened in ("moved", "flipped", "nominated")]
    since = [line.value for line in last[::-1] if line.happened == "moved"]
    if text not in since:
        log.append(Line(now(), "", "moved", text))


def verify_registered(home: Home, record: AttemptRecord, verified: Verified) -> None:
    """Hold what MLflow has of a release against its bundle, the chain and the promotion log.

    Raises:
        ConfigError: MLflow has no version of it yet.
        OutageError: MLflow does not answer.
        VerificationError: The first thing wrong: the version, a file, a tag, an alias.
    """
    from loragate.engines import registry

    version, what = _registered(record), str(record.release)
    place = Place(home, record.opened.model, _store(home, record) or home.tracking_uri)
    with registry.asking(place.uri):
        scratch = place.scratch.with_name(f"verify-{os.getpid()}")  # a promotion may be reading files back beside us
        registry.verify_version(place.uri, place.model, version, verified.checked.digests, scratch)
        tags = registry.tags(place.uri, place.model, version), registry.model_tags(place.uri, place.model)
        require_tags(*tags, verified, what)
        owners = registry.aliases(place.uri, place.model)
    for text in _moved(place, owners):
        raise VerificationError(text)
