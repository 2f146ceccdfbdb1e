"""Perplexity of rows one by one, in padded batches and with loragate: same rows, same model, same machine, in one run.

    .venv/bin/python tests/bench/score.py --rows 1000 --repeat 3

Each peer (see scorers.py) scores all rows in a process of its own, in turn, as often as `--repeat` says; the median
counts:

- real tokens a second: padding is not counted, a beginning that rows share is counted in every row. Wanted: ours at
  least 3 times the loop over single rows on a CPU, and at least 6 times the padded batches on a GPU.
- the most memory that the process had resident, imports and model included, and what tensors took on the accelerator.
  Wanted on a GPU, of the 0.5B shape (`--shape`, random weights): at most 1.5 GB.
- the sum of every row, against that of the loop over single rows. Wanted: equal within the number format's rounding.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from docstrings import Ground
from grounds import add_options, grounded, settle_model
from scorers import PEERS, Job, Outcome, read_outcome
from setting import child, failure, heading, judged, progress, quiet_libraries, table, told

SCORERS = str(Path(__file__).with_name("scorers.py"))
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
OURS, LOOP, PADDED = "ours", "one-by-one", "padded-16"
MIN_LOOP, MIN_PADDED = 3.0, 6.0
MAX_GB = {"qwen2.5-0.5b": 1.5}
"""Most memory on the accelerator, by shape."""

MAX_DIFFERENCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest relative difference of a row's sum that rounding explains."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run works, the environment of its processes, and what they stand on.

    Attributes:
        limit: Seconds that a peer may take; None for as long as it takes.
    """

    folder: Path
    env: Mapping[str, str]
    ground: Ground
    limit: float | None


def main() -> None:
    """Measure and report."""
    options = _options()
    if options.workdir:
        options.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loragate-score-", dir=options.workdir)).resolve()
    try:
        env = quiet_libraries(options.threads) | ({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})
        place = Place(folder, env, grounded(folder, env, options, heldout=0), options.limit)
        told(*heading("Perplexity: row by row, padded batches and loragate", PACKAGES), *_given(place.ground, options))
        outcomes = score_all(place, options.peers or list(PEERS), options.repeat)
        if outcomes:
            told("", *_compared(outcomes, place.ground), *_verdicts(outcomes, place.ground, options.shape))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1000, help="docstring pairs; as many as there are, if fewer")
    parser.add_argument("--width", type=int, default=512, help="longest row")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument(
        "--device", choices=["auto", "cpu"], default="auto", help="auto: the accelerator, if there is one"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="default: all")
    parser.add_argument("--repeat", type=int, default=1, help="how often each peer scores, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--workdir", type=Path, help="folder for a temporary folder of 1 GB (default: the system's)")
    add_options(parser)
    options = parser.parse_args()
    settle_model(options)
    return options


def score_all(place: Place, peers: Sequence[str], repeat: int) -> dict[str, list[Outcome]]:
    """Let the peers score in turn; say what each came to at once, also where it failed."""
    outcomes: dict[str, list[Outcome]] = {}
    for turn in range(repeat):
        for peer in peers:
            try:
                outcome = score(place, peer, place.folder / f"{peer}-{turn}.json")
            except SystemExit as failed:
                told(*failure(peer, failed))
            else:
                outcomes.setdefault(peer, []).append(outcome)
                said = f"- {peer}: {outcome.rate:.1f} tokens/s, RSS {outcome.rss / 1e9:.2f} GB, CUDA "
                told(f"{said}{outcome.cuda / 1e9:.2f} GB, {outcome.reserved / 1e9:.2f} GB reserved.")
    return outcomes


def score(place: Place, peer: str, out: Path) -> Outcome:
    """Let one peer score in a process of its own.

    Raises:
        SystemExit: It failed, or took too long.
    """
    progress(f"{peer} in {place.ground.dtype}")
    job = Job(peer, str(place.folder), place.ground.dtype, str(out))
    child([SCORERS, json.dumps(dataclasses.asdict(job))], place.env, out.with_suffix(".log"), place.limit)
    outcome = read_outcome(out)
    progress(f"{peer}: {outcome.rate:.1f} tokens/s, {outcome.rss / 1e9:.2f} GB")
    return outcome


def _given(ground: Ground, options: argparse.Namespace) -> Iterator[str]:
    name = options.shape or Path(options.model).name
    kind = "rows cut from docstring pairs" if options.cut else "docstring pairs"
    taught = "all tokens" if options.supervise == "all" else "the answers"
    yield f"Base model: {name}, {ground.base['parameters']:,} parameters; {ground.dtype} on"
    yield f"{ground.device}, {options.threads} threads. Rows: {ground.rows} {kind}, {ground.tokens:,} tokens,"
    yield f"{ground.supervised:,} of them supervised ({taught}), none longer than {options.width}. Scored"
    yield f"{options.repeat} times in turn; medians."
    yield ""


def _compared(outcomes: Mapping[str, Sequence[Outcome]], ground: Ground) -> Iterator[str]:
    rates = {peer: median(each.rate for each in found) for peer, found in outcomes.items()}
    columns = ["peer", "seconds", "tokens/s", "lowest, highest", "ours / it", "processor s / 1,000 tokens"]
    columns += [
        "peak RSS, GB",
        "peak CUDA, GB",
        "reserved, GB",
        "perplexity",
        "row's sum off by at most",
        "sum of all off by",
    ]
    columns += ["cores busy for others"]
    own, loop = rates.get(OURS, math.nan), outcomes.get(LOOP, next(iter(outcomes.values())))[0].nats
    lines = [[peer, *_cells(found, own, loop, ground)] for peer, found in outcomes.items()]
    yield from table(columns, lines)


def _verdicts(outcomes: Mapping[str, Sequence[Outcome]], ground: Ground, shape: str) -> Iterator[str]:
    """Whether ours is as fast, as exact and, on a GPU, as small as wanted."""
    rates = {peer: median(each.rate for each in found) for peer, found in outcomes.items()}
    if OURS not in rates:
        return
    rival, least = (PADDED, MIN_PADDED) if ground.accelerated else (LOOP, MIN_LOOP)
    if rival in rates:
        ahead = rates[OURS] / rates[rival]
        yield f"Ours / {rival}: {judged(ahead, ahead >= least, f'at least {least}')}."
    exact = LOOP if LOOP in outcomes else rival
    if exact in outcomes:
        off, most = _row_off(outcomes[OURS][0].nats, outcomes[exact][0].nats), MAX_DIFFERENCE[ground.dtype]
        yield f"A row's sum off by {off:.1e} (at most {most:.0e}: {'yes' if off <= most else '**no**'})."
    if ground.accelerated and shape in MAX_GB:
        taken_gb, most = max(each.reserved for each in outcomes[OURS]) / 1e9, MAX_GB[shape]
        yield f"Memory reserved, GB: {judged(taken_gb, taken_gb <= most, f'at most {most}')}."
    yield ""


def _cells(found: Sequence[Outcome], own: float, loop: Sequence[float], ground: Ground) -> Iterator[str]:
    """The cells of a peer: medians over its turns, sums of the first one."""
    rates, nats = [each.rate for each in found], found[0].nats
    yield f"{median(each.seconds for each in found):.1f}"
    yield f"{median(rates):.1f}"
    yield f"{min(rates):.1f}, {max(rates):.1f}"
    yield f"{own / median(rates):.2f}"
    yield f"{median(each.processor / each.tokens * 1000 for each in found):.2f}"
    yield f"{max(each.rss for each in found) / 1e9:.2f}"
    yield f"{max(each.cuda for each in found) / 1e9:.2f}"
    yield f"{max(each.reserved for each in found) / 1e9:.2f}"
    yield f"{math.exp(sum(nats) / ground.supervised):.4f}"
    yield f"{_row_off(nats, loop):.1e}"
    yield f"{abs(sum(nats) - sum(loop)) / sum(loop):.1e}"
    yield f"{max(each.others for each in found):.2f}"


def _row_off(nats: Sequence[float], loop: Sequence[float]) -> float:
    """Largest relative difference between the sums of a row."""
    return max(abs(a - b) / b for a, b in zip(nats, loop, strict=True))


if __name__ == "__main__":
    main()
