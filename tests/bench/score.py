"""Perplexity of rows one by one, in padded batches and with loragate: same rows, same model, same machine, in one run.

    .venv/bin/python tests/bench/score.py --rows 1000 --repeat 3

Each peer (see scorers.py) scores all rows in a process of its own, in turn, as often as `--repeat` says; the median
counts:

- real tokens a second: padding is not counted, a beginning that rows share is counted in every row. Wanted: ours at
  least 3 times the loop over single rows on a CPU.
- the most memory that the process had resident, imports and model included, and what tensors took on the accelerator.
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

from docstrings import Ground, prepared
from scorers import PEERS, Job, Outcome, read_outcome
from setting import child, heading, judged, model_file, progress, quiet_libraries, table, told

SCORERS = str(Path(__file__).with_name("scorers.py"))
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
OURS, LOOP = "ours", "one-by-one"
MIN_LOOP = 3.0
MAX_DIFFERENCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest relative difference of a row's sum that rounding explains."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run works, the environment of its processes, and what they stand on."""

    folder: Path
    env: Mapping[str, str]
    ground: Ground


def main() -> None:
    """Measure and report."""
    options = _options()
    if options.workdir:
        options.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loragate-score-", dir=options.workdir))
    try:
        env = quiet_libraries(options.threads) | ({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})
        more = {"max_tokens": options.width, "model": options.model, "dtype": options.dtype}
        place = Place(folder, env, prepared(folder, env, train=options.rows, heldout=0, **more))
        told(*heading("Perplexity: row by row, padded batches and loragate", PACKAGES), *_given(place.ground, options))
        outcomes = score_all(place, options.peers or list(PEERS), options.repeat)
        told(*_compared(outcomes, place.ground))
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
    parser.add_argument("--model", default=str(model_file()), help="GGUF file or folder of the base model")
    return parser.parse_args()


def score_all(place: Place, peers: Sequence[str], repeat: int) -> dict[str, list[Outcome]]:
    """Let the peers score in turn."""
    outcomes: dict[str, list[Outcome]] = {peer: [] for peer in peers}
    for turn in range(repeat):
        for peer in peers:
            outcomes[peer].append(score(place, peer, place.folder / f"{peer}-{turn}.json"))
    return outcomes


def score(place: Place, peer: str, out: Path) -> Outcome:
    """Let one peer score in a process of its own."""
    progress(f"{peer} in {place.ground.dtype}")
    job = Job(peer, str(place.folder), place.ground.dtype, str(out))
    child([SCORERS, json.dumps(dataclasses.asdict(job))], place.env, out.with_suffix(".log"))
    outcome = read_outcome(out)
    progress(f"{peer}: {outcome.rate:.1f} tokens/s, {outcome.rss / 1e9:.2f} GB")
    return outcome


def _given(ground: Ground, options: argparse.Namespace) -> Iterator[str]:
    yield f"Base model: {Path(options.model).name}, {ground.base['parameters']:,} parameters; {ground.dtype} on"
    yield f"{ground.device}, {options.threads} threads. Rows: {ground.rows} docstring pairs, {ground.tokens:,} tokens,"
    yield f"{ground.supervised:,} of them supervised (the answers), none longer than {options.width}. Scored"
    yield f"{options.repeat} times in turn; medians."
    yield ""


def _compared(outcomes: Mapping[str, Sequence[Outcome]], ground: Ground) -> Iterator[str]:
    rates = {peer: median(each.rate for each in found) for peer, found in outcomes.items()}
    columns = ["peer", "seconds", "tokens/s", "lowest, highest", "ours / it", "processor s / 1,000 tokens"]
    columns += ["peak RSS, GB", "peak CUDA, GB", "perplexity", "row's sum off by at most", "sum of all off by"]
    columns += ["cores busy for others"]
    own, loop = rates.get(OURS, math.nan), outcomes.get(LOOP, next(iter(outcomes.values())))[0].nats
    lines = [[peer, *_cells(found, own, loop, ground)] for peer, found in outcomes.items()]
    yield from table(columns, lines)
    if OURS in rates and LOOP in rates:
        ahead, off, most = own / rates[LOOP], _row_off(outcomes[OURS][0].nats, loop), MAX_DIFFERENCE[ground.dtype]
        yield f"Ours / the loop over single rows: {judged(ahead, ahead >= MIN_LOOP, f'at least {MIN_LOOP}')}."
        yield f"A row's sum off by {off:.1e} (at most {most:.0e}: {'yes' if off <= most else '**no**'})."
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
    yield f"{math.exp(sum(nats) / ground.supervised):.4f}"
    yield f"{_row_off(nats, loop):.1e}"
    yield f"{abs(sum(nats) - sum(loop)) / sum(loop):.1e}"
    yield f"{max(each.others for each in found):.2f}"


def _row_off(nats: Sequence[float], loop: Sequence[float]) -> float:
    """Largest relative difference between the sums of a row."""
    return max(abs(a - b) / b for a, b in zip(nats, loop, strict=True))


if __name__ == "__main__":
    main()
