"""Read the waivers beside a run file, and let those that count change a verdict that would refuse."""

import glob
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from checks import waivers
from loragate.attempt import Attempt
from loragate.candidate import candidate_digest
from loragate.config import RunFile
from loragate.errors import VerificationError
from loragate.home import find_home
from loragate.narration import tell
from loragate.verdicts import Verdict
from loragate.waivers import NAMESPACE, SIGNATURE, WaiverFile, read_waiver, waive_command


def with_waivers(attempt: Attempt, verdict: Verdict) -> Verdict:
    """Return a verdict with what was waived; of one that would refuse, put on record what was looked at."""
    if not verdict.refuses:
        return verdict
    settings = attempt.config.gates.waivers
    signers = tuple(settings.signers)
    candidate = candidate_digest(attempt.journal.read(), attempt.config)
    case = waivers.Case(attempt.config.model, candidate, datetime.now(UTC).date(), settings.max_days, signers)
    judged, review = waivers.judge(verdict, read_waivers(attempt.run), case)
    home = "" if find_home(None) == attempt.home else str(attempt.home.root)
    rules = waivers.waivable(judged) if signers else ()
    commands = tuple(waive_command(attempt.id, rule, signers, home) for rule in rules)
    attempt.note("waivers", verdict.gate, replace(review, commands=commands))
    for file in review.honoured:
        tell(f"{'waived':>12}  by {file.file}")
    return judged


def refusal(attempt: Attempt, verdict: Verdict) -> str:
    """The verdict as an error's one paragraph, with what it takes to waive it."""
    review = attempt.journal.read().waivers[verdict.gate]
    return "; ".join([verdict.sentence, *review.told])


def read_waivers(run: RunFile) -> tuple[WaiverFile, ...]:
    """Read every waiver file, in the order of their names; without signers nothing is looked at."""
    settings = run.config.gates.waivers
    if not settings.signers:
        return ()
    patterns = [str(run.resolve(pattern)) for pattern in settings.files]
    found = {path for pattern in patterns for path in glob.glob(pattern)}  # noqa: PTH207 - may be absolute
    paths = sorted(Path(path) for path in found if not path.endswith(SIGNATURE))
    return tuple(_read(path, os.path.relpath(path, run.path.parent), settings.signers) for path in paths)


def _read(path: Path, name: str, signers: Mapping[str, str]) -> WaiverFile:
    beside = path.with_name(path.name + SIGNATURE)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        return WaiverFile(name, "", problem=f"it cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return WaiverFile(name, "", problem="it is not UTF-8 text")
    try:
        signature = beside.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        file = signed(WaiverFile(name, text), {})
        return replace(file, problem=file.problem or f"it is not signed: {beside.name} cannot be read")
    return signed(WaiverFile(name, text, signature), signers)


def signed(file: WaiverFile, signers: Mapping[str, str]) -> WaiverFile:
    """A file with what it says and the key of whom it names, or with what is wrong with its text or its signature."""
    try:
        waiver = read_waiver(file.text)
    except ValueError as error:
        return WaiverFile(file.file, file.text, problem=str(error))
    key = " ".join(signers.get(waiver.by, "").split()[:2])
    found = replace(file, waiver=waiver, key=key, problem="")
    return replace(found, problem=_unsigned(file.text.encode("utf-8"), file.signature, key)) if key else found


def _unsigned(content: bytes, signature: str, key: str) -> str:
    """Say why a signature is not the signer's; nothing where it is."""
    from loragate.engines.signing import verify

    try:
        verify(content, signature, key, NAMESPACE)
    except VerificationError as error:
        return str(error)
    return ""
