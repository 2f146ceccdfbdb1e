"""Compute what a sealed release says anew: score a sample of rows, or hold what was made anew against its digests.

Where processor, libraries and this program are those of the release, bytes and sums must be the same; elsewhere what
differs is told, and the tolerance with its reason. Nothing is registered, sealed or put on record.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows
from loragate.claims import Claim, claimed
from loragate.config import RunFile
from loragate.environment import describe, differences, program_digest
from loragate.errors import VerificationError
from loragate.grounds import GgufGrounds, PlanGrounds, PreflightGrounds
from loragate.home import Home
from loragate.perplexity import Nll, ratio, total
from loragate.plan import DeviceFacts, Plan
from loragate.record import EXPECTATIONS, as_plain, read_as
from loragate.sealed_evidence import SealedEvidence, read_evidence, require_input, sealed_run
from loragate.work import RowScore, ScoreAgain
from tasks.attempts import opened
from tasks.check_rows import check_rows, keep_rows
from tasks.models import adapted
from tasks.policies import STEP

TUNED = "tuned"


@contextmanager
def replayed(bundle: str, where: str, home: str, overrides: Sequence[str]) -> Iterator[tuple[Attempt, SealedEvidence]]:
    """Open an attempt with a bundle's settings, and read the bundle; what it notes is taken away at its end.

    Tasks of a benchmark are left out: none of them is sat, so their files need not be there.

    Args:
        where: Folder that relative paths of the settings start at.
        home: Folder of the run store to work in.
    """
    run = sealed_run(Path(bundle), Path(where), overrides)
    quality = run.config.gates.quality.model_copy(update={"tasks": ()})
    changed = {"gates": run.config.gates.model_copy(update={"quality": quality})}
    attempt = Attempt(RunFile(run.path, run.config.model_copy(update=changed)), Home(Path(home)), "replay")
    opened(attempt)
    try:
        yield attempt, read_evidence(Path(bundle))
    finally:
        shutil.rmtree(attempt.journal.path.parent, ignore_errors=True)


def same_base(attempt: Attempt, sealed: SealedEvidence, base: FetchedBase) -> FetchedBase:
    """Return the base model where it is the one that the release was made of.

    Raises:
        VerificationError: It is another.
    """
    recorded = next((each.base for each in sealed.grounds.values() if isinstance(each, GgufGrounds)), None)
    require_input("base_model", sealed.said("inputs").get("base_model"), attempt.journal.read().inputs["base_model"])
    if recorded is not None and recorded.commit != base.base.commit:
        raise VerificationError(
            f"base_model: the hub has commit {base.base.commit}, the release was made of {recorded.commit}; "
            "name that one with --set base_model.revision=COMMIT"
        )
    return base


def same_data(attempt: Attempt, sealed: SealedEvidence, rows: Rows) -> Rows:
    """Return the prepared rows where the data are those that the release was made of.

    Raises:
        VerificationError: A file or data set is another.
    """
    found = attempt.journal.read().inputs
    for name, recorded in sealed.said("inputs").items():
        if name == "data" or name.startswith(("data/", "data_set/")):
            require_input(name, recorded, found.get(name))
    return rows


def kept_rows(attempt: Attempt, rows: Rows) -> Rows:
    """The rows that training had: without those that the data gate drops."""
    if attempt.config.gates.data.on_reject == "refuse":
        return rows
    return keep_rows(attempt, rows, check_rows(attempt, rows))


def as_planned(sealed: SealedEvidence) -> Plan:
    """The plan that the release was trained by: one that is made here may fit another device."""
    given = sealed.grounds["plan"]
    assert isinstance(given, PlanGrounds)
    return given.planned


@task(name="score again", **STEP)
def score_again(attempt: Attempt, sealed: SealedEvidence, base: FetchedBase, rows: Rows, most: int) -> list[Claim]:
    """Score whole forward passes, drawn by the run file's seed, with at least so many of the held-out rows."""
    kept = kept_rows(attempt, rows)
    scored = _scored(attempt, sealed, str(sealed.folder / "adapter"), kept, base, most)
    recorded = sealed.scores[TUNED]
    other = _others(attempt, sealed)
    limit = 0.0 if not other else _tolerance(sealed)
    wrong = _wrong(recorded, scored, limit)
    number = f"{len(scored):,} of {len(recorded):,} rows"
    how = f"{number} scored again: bit-equal"
    if other:
        reason = "rounding in another order, as the preflight gate allows it"
        how = f"{number} scored again: within a share of {limit:g} ({reason}), since these differ: {'; '.join(other)}"
    return [claimed("scores are those of this base and adapter on this data", wrong, how)]


def _scored(
    attempt: Attempt, sealed: SealedEvidence, adapter: str, rows: Rows, base: FetchedBase, most: int
) -> tuple[RowScore, ...]:
    preflight = sealed.grounds["preflight"]
    assert isinstance(preflight, PreflightGrounds)
    model = replace(adapted(attempt, base, adapter), dtype=preflight.evidence.dtype)  # type: ignore[arg-type]
    train = attempt.config.train
    request = ScoreAgain(model, rows.file("heldout.jsonl"), train.most_tokens, most, train.seed)
    return read_as(tuple[RowScore, ...], as_plain(attempt.call("loragate.engines.scoring:score_again", request)))


def _tolerance(sealed: SealedEvidence) -> float:
    """How far a row's loss may be off where it is rounded otherwise, as a share: the preflight gate's own limit."""
    preflight, limits = sealed.grounds["preflight"], sealed.config.gates.preflight
    assert isinstance(preflight, PreflightGrounds)
    exact = preflight.evidence.dtype == "float32"
    return limits.max_row_difference_float32 if exact else limits.max_row_difference_bfloat16


def _wrong(recorded: tuple[Nll, ...], scored: tuple[RowScore, ...], limit: float) -> str:
    """Say which row is not as it was recorded first; empty where none is."""
    for each in sorted(scored, key=lambda each: each.number):
        old = recorded[each.number] if each.number < len(recorded) else Nll(0.0, 0)
        if old.tokens != each.nll.tokens or not abs(old.nats - each.nll.nats) <= limit * abs(old.nats):
            return (
                f"scores/{TUNED}.jsonl:{each.number + 1}: recorded {old.nats!r} nats over {old.tokens} tokens, found "
                f"{each.nll.nats!r} over {each.nll.tokens}" + (f", more than a share of {limit:g} off" if limit else "")
            )
    return ""


def _others(attempt: Attempt, sealed: SealedEvidence) -> list[str]:
    """In what this machine and program differ from those of the release, as far as it decides about digits."""
    found = list(differences(sealed.environment, describe()))
    device = read_as(DeviceFacts, as_plain(attempt.call("loragate.engines.planning:describe_device", None))).name
    then = as_planned(sealed).device.name
    if device != then:
        found.append(f"device {then} -> {device}")
    elif not device.startswith("CPU"):
        found.append(f"{device} adds in an order that is not fixed")
    code = sealed.said("digests").get("code")
    if code != program_digest():
        found.append(f"this program ({str(code)[:12]} -> {program_digest()[:12]})")
    return found


@task(name="compare with release", **STEP)
def remade(attempt: Attempt, sealed: SealedEvidence, base: FetchedBase, rows: Rows) -> list[Claim]:
    """Hold the digests of what was made anew against those of the release."""
    other = _others(attempt, sealed)
    made = {name: ref.digest for name, ref in attempt.journal.read().artifacts.items()}
    recorded = sealed.said("artifacts")
    claims = [Claim("base and data", "yes", "the same bytes, by their digests")]
    for name in (each for each in recorded if each != EXPECTATIONS):
        claim = f"{name} follows from base, data and settings"
        if made.get(name) == recorded.get(name):
            claims.append(Claim(claim, "yes", f"made anew: bit-equal ({str(recorded.get(name))[:12]})"))
        elif not other:
            wrong = (
                f"{name}: recorded {recorded.get(name)}, made anew {made.get(name)}, on the same processor, libraries"
            )
            claims.append(Claim(claim, "no", f"{wrong} and program"))
        elif name == "adapter":
            claims.append(_as_good(attempt, sealed, base, rows, (claim, other)))
        else:
            why = "not bit-equal; it is made of another adapter, or these differ"
            claims.append(Claim(claim, "not shown", f"{why}: {'; '.join(other)}"))
    return claims


def _as_good(
    attempt: Attempt, sealed: SealedEvidence, base: FetchedBase, rows: Rows, about: tuple[str, list[str]]
) -> Claim:
    """Judge an adapter that is not the release's by the interval that the release was judged by."""
    claim, other = about
    adapter = attempt.journal.read().artifacts["adapter"]
    scored = _scored(attempt, sealed, adapter.path, rows, base, len(sealed.scores[TUNED]))
    found = ratio(total(sealed.scores["baseline"]), total(each.nll for each in scored))
    quality = sealed.grounds["quality"]
    low, high = quality.compared.low, quality.compared.high  # type: ignore[union-attr]
    told = f"not bit-equal, since these differ: {'; '.join(other)}; perplexity made anew / baseline is {found:.4g}"
    wrong = "" if low <= found <= high else f"{told}, outside of the release's interval, {low:.4g} to {high:.4g}"
    return claimed(claim, wrong, f"{told}, within the release's interval, {low:.4g} to {high:.4g}")
