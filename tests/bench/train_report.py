"""What `train.py` says of the peers' trainings: the table, the verdicts, the comparison of losses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from clock import Outcome
from setting import judged, table

OURS, TUTORIAL, UNSLOTH, BY_TRL = "ours", "tutorial", "unsloth", "trl-"
MIN_TUTORIAL, MIN_TRL, MAX_DIFFERENCE = 8.0, 1.6, 1e-4
BIG_STEP = 6_000
"""Tokens of a step from which on it is a big one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of ours on a GPU, as a factor of a peer's rate; 0 where nothing was said.

    Attributes:
        trl, unsloth: Of TRL's best and of Unsloth, as measured.
        trl_free, unsloth_free: The same if the host cost nothing.
        share: Of the rate of the frozen products alone.
    """

    trl: float
    trl_free: float
    unsloth: float
    unsloth_free: float
    share: float


WANTED = {
    ("qwen2.5-0.5b", "lora", False): Wanted(6.0, 1.2, 5.0, 1.0, 0.28),
    ("qwen2.5-0.5b", "lora", True): Wanted(1.8, 1.3, 1.4, 1.0, 0.33),
    ("qwen2.5-7b", "lora", False): Wanted(1.5, 0.0, 1.0, 0.0, 0.65),
    ("qwen2.5-7b", "lora", True): Wanted(1.35, 0.0, 1.0, 0.0, 0.65),
    ("qwen2.5-7b", "qlora", False): Wanted(1.4, 0.0, 1.0, 0.0, 0.50),
}
"""By shape, method, and whether a step is a big one (some 3,000 tokens against 8,000 and more)."""


def run_line(peer: str, outcome: Outcome) -> str:
    """What one training came to, said as soon as it has ended."""
    said = f"- {peer}: {outcome.rate:.1f} tokens/s, median of a step {outcome.middle:.1f}, {_milliseconds(outcome):.1f}"
    said += f" ms a step; step 1 ended after {outcome.steps[0].ended:.1f} s; RSS {outcome.rss / 1e9:.2f} GB"
    if outcome.cuda:
        said += f"; CUDA {outcome.cuda / 1e9:.2f} GB, {outcome.reserved / 1e9:.2f} GB reserved"
    if outcome.busy:
        said += f"; GPU busy {_busy(outcome):.1f} ms a step, {_kernels(outcome)} kernels: {outcome.free:.1f} tokens/s"
    return f"{said}."


def compared(outcomes: Mapping[str, Sequence[Outcome]], packages: Sequence[str]) -> Iterator[str]:
    """The table of those that have trained, and versions of `packages` that the heading does not have."""
    rates = {peer: median(each.rate for each in found) for peer, found in outcomes.items()}
    columns = ["peer", "timed steps", "real tokens", "of slots", "tokens/s", "lowest, highest", "ours / it"]
    columns += ["processor s / 1,000 tokens", "peak RSS, GB", "peak CUDA, GB", "until step 1 has ended, s"]
    columns += ["loss first, last", "cores busy for others"]
    own = rates.get(OURS, float("nan"))
    yield from table(columns, [_line(peer, found, own / rates[peer]) for peer, found in outcomes.items()])
    if any(found[0].cuda for found in outcomes.values()):
        yield from _accelerator(outcomes)
    versions = {name: version for found in outcomes.values() for name, version in found[0].versions.items()}
    if more := [f"{name} {version}" for name, version in versions.items() if name not in packages]:
        yield f"Also there: {', '.join(more)}."
        yield ""


def _line(peer: str, found: Sequence[Outcome], ahead: float) -> list[str]:
    """One line of the table: medians over the trainings, losses of the first one."""
    first, rates = found[0], [each.rate for each in found]
    slots = sum(step.slots for step in first.timed)
    work = median(each.processor / each.tokens * 1000 for each in found)
    cells = [peer, str(len(first.timed)), f"{first.tokens:,}", f"{first.tokens / slots:.2f}" if slots else "-"]
    cells += [f"{median(rates):.1f}", f"{min(rates):.1f}, {max(rates):.1f}", f"{ahead:.2f}", f"{work:.2f}"]
    cells += [f"{max(each.rss for each in found) / 1e9:.2f}", f"{max(each.cuda for each in found) / 1e9:.2f}"]
    cells += [f"{median(each.steps[0].ended for each in found):.1f}"]
    cells += [f"{first.steps[0].loss:.3f}, {first.steps[-1].loss:.3f}"]
    return [*cells, f"{max(each.others for each in found):.2f}"]


def _accelerator(outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """What the accelerator did, in a table of its own."""
    columns = ["peer", "tokens/s, median of steps", "ms a step", "GPU busy, ms a step", "kernels a step"]
    columns += ["tokens/s if the host were free", "allocated, GB", "reserved, GB"]
    yield "On the GPU: medians over the timed steps; busy by the profiler, over further steps; peaks since the training"
    yield "began (ours: since before the model was loaded)."
    yield ""
    yield from table(columns, [_gpu_line(peer, found) for peer, found in outcomes.items()])


def _gpu_line(peer: str, found: Sequence[Outcome]) -> list[str]:
    seen = [each for each in found if each.busy]
    cells = [
        peer,
        f"{median(each.middle for each in found):,.0f}",
        f"{median(_milliseconds(each) for each in found):.1f}",
    ]
    cells += [f"{median(_busy(each) for each in seen):.1f}" if seen else "-"]
    cells += [str(_kernels(seen[0])) if seen else "-", f"{median(e.free for e in seen):,.0f}" if seen else "-"]
    return [*cells, f"{max(e.cuda for e in found) / 1e9:.2f}", f"{max(e.reserved for e in found) / 1e9:.2f}"]


def _rate(found: Sequence[Outcome]) -> float:
    return median(each.rate for each in found)


def _free(found: Sequence[Outcome]) -> float:
    """Rate with a free host; as measured where the profiler saw nothing."""
    return median(each.free or each.rate for each in found)


def _milliseconds(outcome: Outcome) -> float:
    return 1000 * outcome.seconds / len(outcome.timed)


def _busy(outcome: Outcome) -> float:
    return 1000 * outcome.busy / outcome.profiled


def _kernels(outcome: Outcome) -> int:
    return round(outcome.kernels / outcome.profiled)


def verdicts(outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Whether ours is as fast as wanted on a CPU."""
    rates = {peer: median(each.rate for each in found) for peer, found in outcomes.items()}
    by_trl = {peer: rate for peer, rate in rates.items() if peer.startswith(BY_TRL)}
    if OURS in rates and TUTORIAL in rates:
        ahead = rates[OURS] / rates[TUTORIAL]
        yield f"Ours / the tutorial's recipe: {judged(ahead, ahead >= MIN_TUTORIAL, f'at least {MIN_TUTORIAL}')}."
        yield ""
    if OURS in rates and by_trl:
        best = max(by_trl, key=lambda peer: by_trl[peer])
        ahead = rates[OURS] / by_trl[best]
        yield f"Ours / the best of TRL ({best}): {judged(ahead, ahead >= MIN_TRL, f'at least {MIN_TRL}')}."
        yield ""


def gpu_verdicts(outcomes: Mapping[str, Sequence[Outcome]], wanted: Wanted, limit: float) -> Iterator[str]:
    """Whether ours is as fast as wanted on a GPU, and takes no more memory than TRL's best."""
    by_trl = [peer for peer in outcomes if peer.startswith(BY_TRL)]
    best = max(by_trl, key=lambda peer: _rate(outcomes[peer]), default="")
    own = outcomes.get(OURS)
    if own is None:
        return
    for peer, here, free in ((best, wanted.trl, wanted.trl_free), (UNSLOTH, wanted.unsloth, wanted.unsloth_free)):
        if peer in outcomes:
            theirs = outcomes[peer]
            yield _ahead(f"Ours / {peer}", _rate(own) / _rate(theirs), here)
            yield _ahead(f"Ours / {peer} if the host were free", _free(own) / _free(theirs), free)
    if best:
        taken, theirs_taken = (max(each.reserved for each in found) for found in (own, outcomes[best]))
        fine = judged(taken / theirs_taken, taken <= theirs_taken, "at most 1")
        yield f"Memory reserved, ours / {best}: {fine}.\n"
    if limit:
        yield _ahead("Ours / the frozen products alone", _rate(own) / limit, wanted.share)


def _ahead(what: str, ratio: float, least: float) -> str:
    return f"{what}: {judged(ratio, ratio >= least, f'at least {least}') if least else f'{ratio:.3f}'}.\n"


def equal(theirs: Outcome, ours: Outcome) -> Iterator[str]:
    """The losses of TRL and of ours on the same rows in the same order."""
    pairs = [(one.loss, two.loss) for one, two in zip(theirs.steps, ours.steps, strict=True)]
    yield "Losses on the same rows in the same order, in float32:"
    yield ""
    rows = [[str(n), f"{a:.7f}", f"{b:.7f}", f"{abs(a - b) / a:.1e}"] for n, (a, b) in enumerate(pairs, start=1)]
    yield from table(["step", "TRL", "ours", "relative difference"], rows)
    most = max(abs(a - b) / a for a, b in pairs)
    fine = "yes" if most <= MAX_DIFFERENCE else "**no**"
    yield f"Largest relative difference: {most:.1e} (at most {MAX_DIFFERENCE:.0e}: {fine})."
    yield ""
