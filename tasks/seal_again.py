"""Seal a release again, in a home of its own that may be spoilt: own keys, own chain, own MLflow store.

What the gates judged and what ships are the release's; of its GGUF files the smallest goes along, because an altered
byte is found in the same way in each. An older release is made beside it, with other weights, and the newer one is
approved and promoted over it. The keys are made here and are worth nothing anywhere else.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from loragate.approvers import read_policy
from loragate.attempt import Attempt
from loragate.candidate import release_digest
from loragate.config import RunFile, plain
from loragate.errors import NotApplicableError
from loragate.home import Home
from loragate.places import KEYS
from loragate.record import EXPECTATIONS, AttemptRecord, Event, Opened, now, read_as
from loragate.refs import Ref, reference
from loragate.store import MARKER
from loragate.verdicts import Verdict
from loragate.waivers import Review
from tasks.aliases import promote
from tasks.approvals import Wish, decide, question
from tasks.promote import promote_release
from tasks.release_keys import OWN, open_chain
from tasks.seal_release import seal_release

OF_THE_ATTEMPT = ("opened", "tracked", "champion", "incumbent", "approvals", "planted", "closed")
"""Events of a journal that are about that attempt's own place and time, not about what was made and judged."""
CHAINED: Mapping[str, type] = {"verdict": Verdict, "waivers": Review}
"""What has an event of its own in the chain."""
APPROVER, APPROVERS = "sabotage", "approvers.json"
OLDER, NEWER = "1", "2"
"""Versions of the two releases."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """A home with two sealed releases.

    Attributes:
        folder: Holds the home and all else that belongs to it.
        uri: The MLflow store.
        older, newer: Digests of the releases.
        attempt: The one that made the newer.
        before: The chain's folder as it was before the newer release.
    """

    folder: Path
    home: Home
    model: str
    uri: str
    older: str
    newer: str
    attempt: str
    before: Path


def seal_again(sound: Attempt, folder: Path) -> Scratch:
    """Make such a home in a folder out of an attempt that was released.

    Raises:
        NotApplicableError: What it made is gone.
        VerificationError: What it made was altered since the gates judged it.
    """
    from loragate.engines import registry_saboteur, seals, signing

    _require_made(sound.journal.read())
    home, model = Home(folder / "home"), sound.config.model
    seals.write_pair(seals.new_key(), home.keys, OWN)
    approver = signing.new_key()
    people = [{"name": APPROVER, "key": approver.public}]
    (folder / APPROVERS).write_text(json.dumps(people), encoding="utf-8")
    uri = registry_saboteur.new_store(folder, model)
    older = _retold(sound, home, _run(sound.run, folder, uri), {"adapter": _other_adapter(sound, folder / "older")})
    digest = _released(older)
    before = Path(shutil.copytree(home.chain, folder / "before"))
    newer = _retold(sound, home, _run(sound.run, folder, uri, approvals=1), {})
    digests = digest, _released(newer)
    decide(home, question(home, home.told(newer.id)), Wish(rejects=False, reason="", expires=""), approver)
    promote(home, home.told(newer.id), None)
    return Scratch(folder, home, model, uri, *digests, newer.id, before)


def _require_made(record: AttemptRecord) -> None:
    for ref in (*record.artifacts.values(), *record.scores.values()):
        if not Path(ref.path).exists():
            raise NotApplicableError(f"{ref.path}: gone since {record.opened.attempt} was released")


def _run(run: RunFile, folder: Path, uri: str, approvals: int = 0) -> RunFile:
    """The run file with other keys, another MLflow and other approvers; its path is one where nobody changes it."""
    places = {
        "tracking_uri": uri,
        "signing_key": str(folder / "home" / KEYS / f"{OWN}.key"),
        "promote": "champion",
        "approvals": approvals,
        "approvers": str(folder / APPROVERS) if approvals else None,
    }
    config = run.config.model_copy(update={"home": None, "record": run.config.record.model_copy(update=places)})
    return RunFile(folder / "run.yaml", config)


def _retold(sound: Attempt, home: Home, run: RunFile, others: Mapping[str, Ref]) -> Attempt:
    """Tell an attempt what another one has on record, but for some artifacts that are put in the place of its own."""
    attempt = Attempt(run, home)
    attempt.chain = open_chain(run, home)
    environment = sound.journal.read().opened.environment
    attempt.note("opened", "", Opened(attempt.id, run.config.model, now(), plain(run.config), environment))
    policy = read_policy(run)
    if policy is not None:
        attempt.note("approvals", "", policy)
    left_out = _left_out(sound)
    for event, name, value in sound.journal.events():
        if event in OF_THE_ATTEMPT or (event == "artifact" and name in left_out):
            continue
        kind = CHAINED.get(event)
        told = others.get(name, value) if event == "artifact" else value if kind is None else read_as(kind, value)
        attempt.note(cast("Event", event), name, told)
    return attempt


def _left_out(sound: Attempt) -> set[str]:
    """Artifacts that do not go along."""
    artifacts = sound.journal.read().artifacts
    files = sorted((name for name in artifacts if name.startswith("gguf_")), key=lambda n: _size(artifacts[n]))
    return {EXPECTATIONS, *files[1:]}


def _size(ref: Ref) -> int:
    return Path(ref.path).stat().st_size


def _other_adapter(sound: Attempt, folder: Path) -> Ref:
    """A copy of the adapter in which the last byte of each file is another: weights of their own, of the same kind."""
    shutil.copytree(sound.journal.read().artifacts["adapter"].path, folder, ignore=shutil.ignore_patterns(MARKER))
    for path in folder.rglob("*.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return reference(folder)


def _released(attempt: Attempt) -> str:
    """Seal, register and promote what an attempt made; return the release's digest."""
    digest = release_digest(attempt.journal.read(), attempt.config)
    promotion = promote_release(attempt, digest, seal_release(attempt, digest))
    assert promotion.outcome == ("candidate" if attempt.config.record.approvals else "champion"), promotion
    return digest
