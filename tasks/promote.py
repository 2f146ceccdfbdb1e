"""Promote a release: upload, read back, register, make it candidate and champion; finish what a kill or an outage left.

Everything here is taken step by step along the promotion's log (`loragate.promotion` says what the lines mean), under a
lock that all processes of the home take turns with.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from loragate.attempt import Attempt
from loragate.chain import Chain
from loragate.config import Config, RunFile
from loragate.errors import BusyError, ConfigError, OutageError, VerificationError
from loragate.home import Home
from loragate.narration import tell
from loragate.promotion import CANDIDATE, CHALLENGER, CHAMPION, PREVIOUS, Intent, Line, Promotion, unfinished, why_lost
from loragate.promotion import lineage as lineage_of
from loragate.record import AttemptRecord, Closed, now
from loragate.store import locked
from loragate.verification import CHAIN_TAG, checked_bundle, head_tag, sealed_folder
from tasks.approvals import why_not_approved
from tasks.attempts import close, close_again, passed
from tasks.release_keys import open_chain
from tasks.seal_release import Sealed, seal_tags


@dataclass(frozen=True, slots=True)
class Place:
    """Where a promotion happens.

    Attributes:
        uri: Address of the MLflow store.
        chain: Where what became champion is put on record; None where nothing can, because one only looks.
        verified: Ids of promotions whose version was read back in this process, in this turn.
    """

    home: Home
    model: str
    uri: str
    chain: Chain | None = None
    verified: set[str] = field(default_factory=set)

    @property
    def store(self) -> str:
        """What the log calls the store."""
        return self.home.store_name(self.uri)

    @property
    def scratch(self) -> Path:
        """Where files are read back to; a kill may leave one there, which the next one takes away."""
        return self.home.promotions(self.model).path.parent / "read"


def promote_release(attempt: Attempt, digest: str, sealed: Sealed) -> Promotion:
    """Promote what the attempt made as its run file says, and close the attempt.

    What earlier attempts left unfinished comes first. Where one of them released exactly this, its promotion is
    returned, and this attempt is left open.

    Raises:
        OutageError: MLflow does not do as asked. The attempt is closed as released, and a reconciliation does the rest.
        VerificationError: Bytes are not what the gates judged; no alias was given.
    """
    place = Place(attempt.home, attempt.config.model, attempt.tracking_uri, attempt.chain)
    log = attempt.home.promotions(place.model)
    with log.alone():
        for earlier in unfinished(log.lines()):
            tell(f"{'unfinished':>12}  {finish(attempt.home, earlier, alone=True)}")
        standings = attempt.home.standings(place.model)
        found = standings.released(digest, place.store)
        if found is not None:
            return found
        record = attempt.journal.read()
        champions = standings.lineage(place.store)
        top = champions[-1] if champions else ""
        intent = Intent(
            attempt.id,
            "release",
            place.model,
            attempt.id,
            digest,
            place.store,
            CANDIDATE if record.approvals else attempt.config.record.promote,  # nobody can have approved it yet
            top if record.incumbent is None else record.incumbent,
            dict(sealed.files),
            tags=seal_tags(sealed),
        )
        promotion = log.prepare(intent)
        try:
            return advance(place, promotion, attempt)
        except VerificationError:
            raise
        except BaseException as error:  # whatever ends it, the gates have let it go
            if attempt.journal.read().closed is None:
                why = str(error) or type(error).__name__
                _close(place, _latest(place, promotion), attempt, f"; {why}; `loragate reconcile` does the rest")
            raise


def finish(home: Home, promotion: Promotion, *, alone: bool = False) -> str:
    """Take the steps that are left of a promotion; say what became of it.

    Args:
        alone: Whether this process holds the model's lock: no release of it can be under way.
    """
    intent = promotion.intent
    if intent.kind == "release" and not home.journal(intent.attempt).path.is_file():
        reason = "the record of the attempt is gone"
        return told(home.promotions(intent.model).note(promotion, "sealed", {"outcome": "undone", "reason": reason}))
    try:
        attempt = attempt_again(home, intent.attempt, intent.store)
    except (ConfigError, ValidationError, VerificationError) as error:  # no key, another version's run file, the chain
        return f"{promotion.name}: still open: {error}"
    try:
        release = intent.kind == "release"
        lock = locked(home.root / "locks" / intent.model, f"a release of {intent.model}")
        with lock if release and not alone else nullcontext():
            place = Place(home, intent.model, attempt.tracking_uri, attempt.chain)
            return told(advance(place, promotion, attempt if release else None))
    except VerificationError as error:
        return f"{promotion.name}: undone: {error}"
    except (OutageError, BusyError) as error:
        return f"{promotion.name}: still open: {error}"


def told(promotion: Promotion) -> str:
    """What became of a promotion, in a sentence."""
    name, why = promotion.name, promotion.lost or promotion.reason
    match promotion.outcome:
        case "champion":
            return f"{name} is champion"
        case "candidate":
            return f"{name} is candidate; to make it champion: loragate promote {name}"
        case outcome:
            return f"{name}: {outcome}: {why}"


def attempt_again(home: Home, name: str, store: str) -> Attempt:
    """The attempt behind a release, as its journal has it; where MLflow is, is what the promotion log says.

    Raises:
        ConfigError: The key that its run file names cannot be read.
        VerificationError: The chain was altered.
    """
    opened = home.journal(name).read().opened
    content = dict(opened.config)
    record = content.get("record")
    uri = store or home.tracking_uri
    content["record"] = {**(record if isinstance(record, dict) else {}), "tracking_uri": uri}
    attempt = Attempt(RunFile(Path(opened.run_file), Config.model_validate(content, strict=False)), home)
    attempt.id, attempt.journal = name, home.journal(name)
    attempt.chain = open_chain(attempt.run, home)
    return attempt


def advance(place: Place, promotion: Promotion, attempt: Attempt | None) -> Promotion:
    """Take every step that is left; the caller has the turn.

    Args:
        attempt: Made the release; None where it was registered long ago.

    Raises:
        OutageError: MLflow does not do as asked; what was done is on record.
        VerificationError: Bytes are not what the gates judged; the promotion is sealed as undone.
    """
    from loragate.engines import registry

    steps = {"upload": _upload, "register": _register, "nominate": _nominate, "flip": _flip, "seal": _seal}
    try:
        while promotion.step != "none":
            with registry.asking(place.uri):
                promotion = steps[promotion.step](place, promotion, attempt)
    except VerificationError as error:
        if attempt is not None and attempt.journal.read().closed is None:
            close(attempt, Closed("failed", f"{type(error).__name__}: {error}", now()))
        place.home.promotions(place.model).note(promotion, "sealed", {"outcome": "undone", "reason": str(error)})
        raise
    return promotion


def _upload(place: Place, promotion: Promotion, attempt: Attempt | None) -> Promotion:
    from loragate.engines import registry, seals, tracking

    assert attempt is not None
    folder = place.home.releases / place.model / promotion.intent.digest
    if checked_bundle(folder, seals.unseal).digests != promotion.intent.files:
        raise VerificationError(f"{folder}: not the bundle that was to be promoted; release again")
    run_id = tracking.upload(attempt, attempt.journal.read(), folder).run_id
    registry.verify_run(place.uri, run_id, promotion.intent.files, place.scratch)
    place.verified.add(promotion.intent.id)
    return place.home.promotions(place.model).note(promotion, "uploaded", run_id)


def _register(place: Place, promotion: Promotion, attempt: Attempt | None) -> Promotion:
    from loragate.engines import registry, tracking

    assert attempt is not None
    version = tracking.register(attempt, promotion.intent.digest, promotion.intent.tags)
    if registry.run_of(place.uri, place.model, version) != promotion.run_id:  # an earlier attempt's, of the same digest
        place.verified.discard(promotion.intent.id)
    return place.home.promotions(place.model).note(promotion, "registered", version)


def _verify(place: Place, promotion: Promotion) -> None:
    """Read the version back, unless that was done in this turn."""
    from loragate.engines import registry

    if promotion.intent.id not in place.verified:
        files = promotion.intent.files
        registry.verify_version(place.uri, place.model, promotion.version, files, place.scratch)
        place.verified.add(promotion.intent.id)


def _nominate(place: Place, promotion: Promotion, _: Attempt | None) -> Promotion:
    from loragate.engines import registry

    _verify(place, promotion)
    registry.give_alias(place.uri, place.model, CANDIDATE, promotion.version)
    return place.home.promotions(place.model).note(promotion, "nominated", promotion.version)


def _flip(place: Place, promotion: Promotion, _: Attempt | None) -> Promotion:
    """Compare and swap: verify first, since that takes long, then read who is champion, set it, and read it back."""
    from loragate.engines import registry

    log, version = place.home.promotions(place.model), promotion.version
    _verify(place, promotion)
    found = registry.aliases(place.uri, place.model).get(CHAMPION, "")
    champions = place.home.standings(place.model).lineage(place.store)
    lost = why_lost(promotion, found, champions)
    if not lost and found != version and promotion.intent.kind != "rollback":
        lost = why_not_approved(place.home, place.home.told(promotion.intent.attempt), promotion.intent.digest)
    if lost:
        return log.note(promotion, "lost", lost)
    if found != version:
        owner = registry.give_alias(place.uri, place.model, CHAMPION, version)
        if owner != version:
            return log.note(promotion, "lost", f"{place.model}@{owner or 'none'} was made champion at the same time")
    grown = (*log.lines(), Line(now(), promotion.intent.id, "flipped", found))
    before = lineage_of(grown, place.store, place.home.standings(place.model).before(place.store))[:-1]
    if before:
        registry.give_alias(place.uri, place.model, PREVIOUS, before[-1])
    else:
        registry.take_alias(place.uri, place.model, PREVIOUS)
    return log.note(promotion, "flipped", found)


def _seal(place: Place, promotion: Promotion, attempt: Attempt | None) -> Promotion:
    """Close the attempt, bring its last words to MLflow, and write that nothing is left to do."""
    from loragate.engines import tracking

    if attempt is not None:
        if attempt.journal.read().closed is None:
            _close(place, promotion, attempt)
        close_again(attempt)
        tracking.close_run(attempt, attempt.journal.read())
    _challenge(place)
    _chain(place, promotion)
    sealed = {"outcome": promotion.reached, "reason": promotion.lost}
    return place.home.promotions(place.model).note(promotion, "sealed", {**sealed})


def _challenge(place: Place) -> None:
    """Let the alias `challenger` follow: the candidate has it while it is not the champion."""
    from loragate.engines import registry

    version = place.home.standings(place.model).standing(place.store).get(CHALLENGER)
    if version is None:
        registry.take_alias(place.uri, place.model, CHALLENGER)
    else:
        registry.give_alias(place.uri, place.model, CHALLENGER, version)


def _chain(place: Place, promotion: Promotion) -> None:
    """Put it into the chain what a version became, once, and how the log has it; tell MLflow where that ends now."""
    from loragate.engines import registry

    intent = promotion.intent
    size, digest = place.home.promotions(place.model).through(intent.id)
    fields = {
        "promotion": intent.id,
        "kind": intent.kind,
        "model": intent.model,
        "release": intent.digest,
        "version": promotion.version,
        "outcome": promotion.reached,
        "replaced": intent.expected if promotion.flipped else None,
        "log": {"size": size, "sha256": digest},
    }
    assert place.chain is not None
    event = "rollback" if intent.kind == "rollback" else "promotion"
    if not place.chain.has(event, fields):
        place.chain.append(event, fields)
    registry.tag_model(place.uri, place.model, CHAIN_TAG, head_tag(place.chain.head()))


def _close(place: Place, promotion: Promotion, attempt: Attempt, more: str = "") -> None:
    """Put the release on record as what it has come to."""
    version, standing = promotion.version, place.home.standings(place.model).standing(place.store)
    aliases = tuple(alias for alias, owner in standing.items() if version and owner == version)
    released = f": released as {promotion.name}" if version else ""
    not_champion = f"; not made champion: {promotion.lost}" if promotion.lost else ""
    waits = "; it is candidate, `loragate promote` makes it champion" if promotion.reached == "candidate" else ""
    message = passed(attempt.journal.read()) + released + not_champion + (more or waits)
    close(attempt, Closed("released", message, now(), version or None, promotion.intent.digest, aliases))
    tell(f"{'promoted':>12}  {', '.join(aliases) or 'no alias yet'}")


def _latest(place: Place, promotion: Promotion) -> Promotion:
    found = place.home.standings(place.model).promotions
    return next(each for each in found if each.intent.id == promotion.intent.id)


def files_of(home: Home, record: AttemptRecord) -> dict[str, str]:
    """SHA-256 of every file that a release's version holds: those of its bundle, which is checked first.

    Raises:
        VerificationError: The bundle is gone, or is not as it was sealed.
    """
    from loragate.engines import seals

    return dict(checked_bundle(sealed_folder(home, record), seals.unseal).digests)
