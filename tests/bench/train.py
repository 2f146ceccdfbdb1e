"""Training with the tutorial's recipe, TRL, Unsloth and loragate: same rows, same model, same machine, in one run.

    .venv/bin/python tests/bench/train.py --rows 200 --repeat 3

Each peer (see trainers.py) trains in a process of its own, in turn, as often as `--repeat` says; the median counts:

- real tokens a second over the steps after the warm-up: padding is not counted, a beginning that rows share is counted
  in every row. Wanted on a CPU: ours at least 8 times the tutorial's and at least 1.6 times the best of TRL's.
- the most memory that the process had resident, imports and model included, and what tensors took on the accelerator.
- in float32 and apart from the above: the losses of TRL and of ours, step by step, on the same rows in the same order.

On a GPU the steps are told (`--steps`), and two further ones are watched by the profiler: how long the kernels take is
what a step would cost if the host started them for free. What is wanted there is in train_report.py, by `--shape`: the
model's published shape with random weights. Rows can come from a folder that `--prepare` has left (grounds.py).

TRL and Unsloth are no part of loragate's environment: TRL is installed beside it for the run, or found where `--trl`
says; Unsloth is found where `--unsloth` says. Where flash-attn is missing on a GPU, both get a stand-in (shims/).
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
from importlib.util import find_spec
from pathlib import Path

from clock import Outcome, read_outcome
from docstrings import GROUND, HELDOUT, TRAIN, Ground, read_ground
from grounds import add_options, grounded, prepared_ground, settle_model
from host import measured
from setting import child, failure, heading, progress, quiet_libraries, told
from train_report import BIG_STEP, BY_TRL, OURS, UNSLOTH, WANTED, compared, equal, gpu_verdicts, run_line, verdicts
from trainers import EAGER, PEERS, TARGETS, Job

TRL = "trl==1.16.0"
TRAINERS = str(Path(__file__).with_name("trainers.py"))
SHIMS = Path(__file__).with_name("shims")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "bitsandbytes")
EQUAL, FA2_LIGER = "trl-equal", "trl-fa2-liger"
ONLY_GPU = (FA2_LIGER, UNSLOTH, EAGER)
PROFILED = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run works, the environment of its processes, and what each of them is given but for its name.

    Attributes:
        beside: Folders to import from, by the beginning of the peer's name.
        limit: Seconds that a peer may take; None for as long as it takes.
    """

    folder: Path
    env: Mapping[str, str]
    beside: Mapping[str, Sequence[Path]]
    job: Job
    limit: float | None

    def env_of(self, peer: str) -> dict[str, str]:
        """The environment of a peer's process."""
        folders = [str(folder) for name, each in self.beside.items() if peer.startswith(name) for folder in each]
        return {**self.env, "PYTHONPATH": os.pathsep.join([*folders, *filter(None, [self.env["PYTHONPATH"]])])}


def main() -> None:
    """Measure and report."""
    options = _options()
    if options.workdir:
        options.workdir.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        env = quiet_libraries(options.threads)
        prepared_ground(options.prepare.resolve(), env, rows=options.rows, model=options.model)
        return
    folder = Path(tempfile.mkdtemp(prefix="loragate-train-", dir=options.workdir)).resolve()
    try:
        report(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(folder: Path, options: argparse.Namespace) -> None:
    """Train, and say what came of it as it comes."""
    place = make_place(folder, options)
    ground = read_ground(folder)
    told(*heading("Training: the tutorial's recipe, TRL, Unsloth and loragate", PACKAGES))
    told(*_given(place, ground, options))
    limit = _host(place, ground, options) if options.host else 0.0
    peers = options.peers or [name for name in PEERS if name != EQUAL and _can(name, ground, place)]
    outcomes = train_all(place, peers, options.repeat)
    if outcomes:
        told("", *compared(outcomes, PACKAGES))
        wanted = WANTED.get((options.shape, options.method, options.step_tokens >= BIG_STEP))
        if ground.accelerated and wanted:
            told(*gpu_verdicts(outcomes, wanted, limit))
        elif not ground.accelerated:
            told(*verdicts(outcomes))
    if options.equal_steps:
        told(*equal(*train_equally(place, options.equal_steps)))


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
    parser.add_argument("--trl", type=Path, help=f"folder that holds {TRL} (default: installed for the run)")
    parser.add_argument("--seed", type=int, default=0)
    _add_gpu_options(parser)
    add_options(parser)
    options = parser.parse_args()
    settle_model(options)
    return options


def _add_gpu_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write --rows rows and the tokenizer; no more")
    parser.add_argument("--step-tokens", type=int, default=0, help="instead of --batch: rows of about so many tokens")
    parser.add_argument(
        "--forward-tokens", type=int, default=0, help="most of a forward pass of ours (default: its own)"
    )
    parser.add_argument("--method", choices=["lora", "qlora"], default="lora")
    parser.add_argument("--targets", choices=TARGETS, default="attention", help="layers that get an adapter")
    parser.add_argument("--unsloth", type=Path, help="folder that holds Unsloth and the TRL that it needs")
    parser.add_argument("--host", action="store_true", help="also: what starting an operator costs, and the limit")


def make_place(folder: Path, options: argparse.Namespace) -> Place:
    """Install TRL where it is not, prepare the rows and the base model."""
    env = quiet_libraries(options.threads)
    ground = grounded(folder, env, options, heldout=1)
    trl = options.trl.resolve() if options.trl else None
    if trl is None and (options.equal_steps or any(peer.startswith(BY_TRL) for peer in options.peers or PEERS)):
        trl = _installed(folder / "trl")
    shims = [SHIMS] if ground.accelerated and find_spec("flash_attn") is None else []
    beside = {BY_TRL: [*filter(None, [trl]), *shims]}
    beside |= {UNSLOTH: [options.unsloth.resolve(), *shims]} if options.unsloth else {}
    batch = round(options.step_tokens * ground.rows / ground.tokens) if options.step_tokens else options.batch
    profiled = PROFILED if options.steps and ground.accelerated else 0
    sizes = {name: getattr(options, name) for name in ("warmup", "micro", "width", "seed", "method", "targets")}
    sizes |= {"steps": options.steps + profiled, "profiled": profiled, "batch": batch}
    job = Job("", str(folder), dtype=ground.dtype, forward=options.forward_tokens, out="", **sizes)
    return Place(folder, env, beside, job, options.limit)


def _installed(folder: Path) -> Path:
    """Install TRL alone into a folder: what it needs is in loragate's environment."""
    progress(f"installing {TRL}")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), TRL]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def _can(peer: str, ground: Ground, place: Place) -> bool:
    """Whether a peer has here what it needs."""
    if peer in ONLY_GPU and not ground.accelerated:
        return False
    liger = find_spec("liger_kernel") is not None or any((p / "liger_kernel").exists() for p in place.beside[BY_TRL])
    return {FA2_LIGER: liger, UNSLOTH: UNSLOTH in place.beside}.get(peer, True)


def _host(place: Place, ground: Ground, options: argparse.Namespace) -> float:
    """Say what the host and the accelerator can do; return the limit in tokens a second, 0 where it is not known."""
    tokens = options.step_tokens if ground.accelerated else 0
    try:
        found = measured(place.folder, place.env, shape=options.shape, tokens=tokens)
    except SystemExit as failed:
        told(*failure("the host's costs", failed))
        return 0.0
    limit = found.pop("limit", 0.0)
    costs = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    told(f"Host, microseconds to start an operator: {costs}.")
    if limit:
        told(f"The frozen products alone: {limit:,.0f} tokens/s in steps of {tokens:,}.")
    told("")
    return limit


def train_all(place: Place, peers: Sequence[str], repeat: int) -> dict[str, list[Outcome]]:
    """Let the peers train in turn; say what each came to at once, also where it failed."""
    outcomes: dict[str, list[Outcome]] = {}
    for turn in range(repeat):
        for peer in peers:
            try:
                outcome = train(place, dataclasses.replace(place.job, peer=peer, out=f"{peer}-{turn}"))
            except SystemExit as failed:
                told(*failure(peer, failed))
            else:
                outcomes.setdefault(peer, []).append(outcome)
                told(run_line(peer, outcome))
    return outcomes


def train(place: Place, job: Job) -> Outcome:
    """Let one peer train in a process of its own.

    Raises:
        SystemExit: It failed, or took too long.
    """
    progress(f"{job.peer} in {job.dtype}")
    out = Path(job.folder) / f"{job.out}.json"
    given = json.dumps(dataclasses.asdict(dataclasses.replace(job, out=str(out))))
    try:
        child([TRAINERS, given], place.env_of(job.peer), out.with_suffix(".log"), place.limit)
    finally:
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
    job = dataclasses.replace(place.job, folder=str(folder), steps=0, profiled=0, warmup=1, dtype="float32")
    theirs, ours = (train(place, dataclasses.replace(job, peer=peer, out=peer)) for peer in (EQUAL, OURS))
    return theirs, ours


def _given(place: Place, ground: Ground, options: argparse.Namespace) -> Iterator[str]:
    job, name = place.job, options.shape or Path(options.model).name
    kind = "rows cut from docstring pairs" if options.cut else "docstring pairs"
    taught = "all tokens" if options.supervise == "all" else "the answers"
    yield f"Base model: {name}, {ground.base['parameters']:,} parameters; {job.method} on the {job.targets} layers in"
    yield f"{job.dtype} on {ground.device}, {options.threads} threads. Rows: {ground.rows} {kind}, {ground.tokens:,}"
    yield f"tokens, {ground.supervised:,} of them supervised ({taught}, for every peer), none longer than {job.width}."
    yield f"{job.batch} rows an optimizer step; tutorial and TRL {job.micro} a forward pass; {job.warmup} steps of"
    yield f"warm-up are not timed. Trained {options.repeat} times in turn; medians."
    yield ""


if __name__ == "__main__":
    main()
