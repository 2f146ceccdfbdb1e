"""Training with the tutorial's recipe, with TRL and with loragate: same rows, same model, same machine, in one run.

    .venv/bin/python tests/bench/train.py --rows 200 --repeat 3

Each peer (see trainers.py) trains in a process of its own, in turn, as often as `--repeat` says; the median counts:

- real tokens a second over the steps after the warm-up: padding is not counted, a beginning that rows share is counted
  in every row. Wanted: ours at least 8 times the tutorial's and at least 1.6 times the best of TRL's.
- the most memory that the process had resident, imports and model included, and what tensors took on the accelerator.
- in float32 and apart from the above: the losses of TRL and of ours, step by step, on the same rows in the same order.

TRL is no part of loragate's environment: it is installed beside it for the run, or found where `--trl` says.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from docstrings import GROUND, HELDOUT, TRAIN, Ground, prepared, read_ground
from setting import child, heading, judged, model_file, progress, quiet_libraries, table, told
from trainers import PEERS, Job, Outcome, read_outcome

TRL = "trl==1.16.0"
TRAINERS = str(Path(__file__).with_name("trainers.py"))
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "bitsandbytes")
OURS, TUTORIAL, BY_TRL = "ours", "tutorial", "trl-"
EQUAL, FA2_LIGER = "trl-equal", "trl-fa2-liger"
MIN_TUTORIAL, MIN_TRL, MAX_DIFFERENCE = 8.0, 1.6, 1e-4


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run works, the environment of its processes, and what each of them is given but for its name."""

    folder: Path
    env: Mapping[str, str]
    job: Job


def main() -> None:
    """Measure and report."""
    options = _options()
    if options.workdir:
        options.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loragate-train-", dir=options.workdir))
    try:
        place = make_place(folder, options)
        told(*heading("Training: the tutorial's recipe, TRL and loragate", PACKAGES))
        told(*_given(place, options))
        peers = options.peers or [name for name in PEERS if name != EQUAL and _can(name, read_ground(folder))]
        told(*_compared(train_all(place, peers, options.repeat)))
        if options.equal_steps:
            told(*_equal(*train_equally(place, options.equal_steps)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200, help="docstring pairs")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps (default: one pass over the rows)")
    parser.add_argument("--warmup", type=int, default=2, help="first steps that are not timed, at least 1")
    parser.add_argument("--batch", type=int, default=16, help="rows of an optimizer step")
    parser.add_argument("--micro", type=int, default=4, help="rows of a forward pass of the tutorial and of TRL")
    parser.add_argument(
        "--width", type=int, default=512, help="longest row, width of the tutorial's rows and TRL's packs"
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="default: all that can run here")
    parser.add_argument("--equal-steps", type=int, default=6, help="steps of which the losses are compared; 0: none")
    parser.add_argument("--repeat", type=int, default=1, help="how often each peer trains, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--workdir", type=Path, help="folder for a temporary folder of 1 GB (default: the system's)")
    parser.add_argument("--model", default=str(model_file()), help="GGUF file or folder of the base model")
    parser.add_argument("--trl", type=Path, help=f"folder that holds {TRL} (default: installed for the run)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_place(folder: Path, options: argparse.Namespace) -> Place:
    """Install TRL where it is not, prepare the rows and the base model."""
    env = quiet_libraries(options.threads, options.trl.resolve() if options.trl else _installed(folder / "trl"))
    more = {"max_tokens": options.width, "model": options.model, "dtype": options.dtype}
    ground = prepared(folder, env, train=options.rows, heldout=1, **more)
    sizes = {name: getattr(options, name) for name in ("steps", "warmup", "batch", "micro", "width", "seed")}
    return Place(folder, env, Job("", str(folder), dtype=ground.dtype, out="", **sizes))


def _installed(folder: Path) -> Path:
    """Install TRL alone into a folder: what it needs is in loragate's environment."""
    progress(f"installing {TRL}")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), TRL]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def _can(peer: str, ground: Ground) -> bool:
    return peer != FA2_LIGER or ground.fa2_liger


def train_all(place: Place, peers: Sequence[str], repeat: int) -> dict[str, list[Outcome]]:
    """Let the peers train in turn."""
    outcomes: dict[str, list[Outcome]] = {peer: [] for peer in peers}
    for turn in range(repeat):
        for peer in peers:
            outcomes[peer].append(train(place, dataclasses.replace(place.job, peer=peer, out=f"{peer}-{turn}")))
    return outcomes


def train(place: Place, job: Job) -> Outcome:
    """Let one peer train in a process of its own."""
    progress(f"{job.peer} in {job.dtype}")
    out = Path(job.folder) / f"{job.out}.json"
    given = json.dumps(dataclasses.asdict(dataclasses.replace(job, out=str(out))))
    child([TRAINERS, given], place.env, out.with_suffix(".log"))
    shutil.rmtree(out.with_suffix(""), ignore_errors=True)
    outcome = read_outcome(out)
    progress(f"{job.peer}: {outcome.rate:.1f} tokens/s, {outcome.rss / 1e9:.2f} GB")
    return outcome


def train_equally(place: Place, steps: int) -> tuple[Outcome, Outcome]:
    """Let TRL and ours train on the same full batches in the same order, in float32."""
    folder, lines = place.folder / "equal", (place.folder / TRAIN).read_bytes().splitlines(keepends=True)
    full = min(steps, len(lines) // place.job.batch) * place.job.batch
    folder.mkdir()
    (folder / TRAIN).write_bytes(b"".join(lines[:full]))
    for name in (HELDOUT, GROUND):
        shutil.copy(place.folder / name, folder)
    job = dataclasses.replace(place.job, folder=str(folder), steps=0, warmup=1, dtype="float32")
    theirs, ours = (train(place, dataclasses.replace(job, peer=peer, out=peer)) for peer in (EQUAL, OURS))
    return theirs, ours


def _given(place: Place, options: argparse.Namespace) -> Iterator[str]:
    ground, job = read_ground(place.folder), place.job
    yield f"Base model: {Path(options.model).name}, {ground.base['parameters']:,} parameters; {job.dtype} on"
    yield f"{ground.device}, {options.threads} threads. Rows: {ground.rows} docstring pairs, {ground.tokens:,} tokens,"
    yield f"{ground.supervised:,} of them supervised (the answers, for every peer), none longer than {job.width}."
    yield f"{job.batch} rows an optimizer step; tutorial and TRL {job.micro} a forward pass; {job.warmup} steps of"
    yield f"warm-up are not timed. Trained {options.repeat} times in turn; medians."
    yield ""


def _compared(outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    rates = {peer: median(each.rate for each in found) for peer, found in outcomes.items()}
    columns = ["peer", "timed steps", "real tokens", "of slots", "tokens/s", "lowest, highest", "ours / it"]
    columns += ["processor s / 1,000 tokens", "peak RSS, GB", "peak CUDA, GB", "until step 1 has ended, s"]
    columns += ["loss first, last", "cores busy for others"]
    own = rates.get(OURS, float("nan"))
    yield from table(columns, [_line(peer, found, own / rates[peer]) for peer, found in outcomes.items()])
    versions = next(iter(outcomes.values()))[0].versions
    yield f"Also there: {', '.join(f'{n} {v}' for n, v in versions.items() if n not in PACKAGES)}."
    yield ""
    yield from _verdicts(rates)


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


def _verdicts(rates: Mapping[str, float]) -> Iterator[str]:
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


def _equal(theirs: Outcome, ours: Outcome) -> Iterator[str]:
    pairs = [(one.loss, two.loss) for one, two in zip(theirs.steps, ours.steps, strict=True)]
    yield "Losses on the same rows in the same order, in float32:"
    yield ""
    rows = [[str(n), f"{a:.7f}", f"{b:.7f}", f"{abs(a - b) / a:.1e}"] for n, (a, b) in enumerate(pairs, start=1)]
    yield from table(["step", "TRL", "ours", "relative difference"], rows)
    most = max(abs(a - b) / a for a, b in pairs)
    fine = "yes" if most <= MAX_DIFFERENCE else "**no**"
    yield f"Largest relative difference: {most:.1e} (at most {MAX_DIFFERENCE:.0e}: {fine})."
    yield ""


if __name__ == "__main__":
    main()
