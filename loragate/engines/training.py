"""Training an adapter: one loop, every step on record, resumable to the bit.

The loss of an optimizer step is the sum of nats over its supervised tokens divided by their number, however many
forward passes it takes. The loop is the same on a CPU and on a GPU, where a step may be a CUDA graph. Everything that
decides the next step (weights, optimiser, random states, place in the data) is in each checkpoint.
"""

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loragate.child import Progress, Report, ignore
from loragate.config import Train
from loragate.engines import checkpoints
from loragate.engines.adapters import ADAPTER, adapted_model, lora_modules, predicted_trainable, save_adapter
from loragate.engines.captured import LOOKED_AT, CapturedSteps
from loragate.engines.fused import quicken
from loragate.engines.language_model import choose_dtype, device, read_examples
from loragate.engines.packing import passes_for
from loragate.engines.scoring import score
from loragate.engines.steps import Steps
from loragate.perplexity import total
from loragate.record import CurvePoint
from loragate.rendering import Example
from loragate.work import TrainAdapter, Trained

WINDOW = 32
"""Batches that rows are dealt to together."""
JITTER = 0.2
"""Lengths count as up to this share longer or shorter where rows are dealt, so that other rows meet in each epoch."""


@dataclass(slots=True)
class State:
    """Where training stands.

    Attributes:
        step: Optimizer steps taken.
        with_gradient: Modules whose lora_B has had a gradient other than zero.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    curve: list[CurvePoint] = field(default_factory=list)
    with_gradient: set[str] = field(default_factory=set)

    def fruitless(self) -> int:
        """Evaluations since the best one."""
        return sum(1 for point in self.curve if point.heldout_loss is not None and point.step > self.best_step)

    def over(self, settings: Train, steps: int) -> bool:
        """Whether there is nothing more to do: all steps taken, no finite loss any more, or no lower one for long."""
        lost = bool(self.curve) and not math.isfinite(self.curve[-1].loss)
        patient = not settings.early_stopping or self.fruitless() < settings.early_stopping
        return self.step >= steps or lost or not patient


def train(request: TrainAdapter, report: Report) -> Trained:
    """Train, or go on from the newest complete checkpoint in `scratch`, and leave the best adapter in `folder`.

    Raises:
        ConfigError: A target module is not in the model.
    """
    settings, scratch = request.settings, Path(request.scratch)
    model = adapted_model(request.base, settings)
    ways = quicken(model, recompute=request.checkpointing)
    examples, heldout = read_examples(request.train), read_examples(request.heldout)
    passes = passes_for(
        model, examples, settings.most_tokens, share=settings.dropout == 0, noise=settings.neftune_alpha
    )
    batches = [[examples[i] for i in rows] for rows in plan(examples, settings, packed=passes.packed)]
    steps = (
        CapturedSteps(model, passes, settings)
        if settings.cuda_graph and passes.longest and device().type == "cuda"
        else Steps(model, passes, settings)
    )
    state = _resume(scratch, steps)
    resumed_from, todo = state.step, batches[state.step :]
    fallback = steps.capture(todo[:LOOKED_AT]) if isinstance(steps, CapturedSteps) and todo else ""
    modules = dict(lora_modules(model))
    per_epoch = math.ceil(len(examples) / settings.batch_size)

    def rate(number: int) -> float:
        return learning_rate(settings, number - 1, len(batches))

    done = state.over(settings, len(batches))
    for taken in () if done else steps.take(batches, state.step + 1, rate):
        state.step = taken.number
        point = CurvePoint(taken.number, taken.nats.item(), taken.learning_rate, taken.norm.item())
        _note_gradients(modules, state)
        if state.step % per_epoch == 0:
            point = _evaluate(model, heldout, point, state, scratch, settings)
        state.curve.append(point)
        report(Progress(state.step, len(batches), "steps", _numbers(point)))
        done = state.over(settings, len(batches))
        if done or state.step % settings.checkpoint_steps == 0:
            _checkpoint(scratch, steps, state)
        if done:
            break
    return replace(_finish(request, model, state, resumed_from), ways=(*ways, *steps.ways), fallback=fallback)


def plan(examples: Sequence[Example], settings: Train, *, packed: bool = True) -> Iterator[list[int]]:
    """Yield the row numbers of every optimizer step: each epoch every row once, in an order of its own.

    Rows come at random. For packs the rows of some batches are then dealt out so that each batch has about as many
    tokens as the next; where rows are padded, each batch gets rows of like length instead.
    """
    order = random.Random(settings.seed)
    window = settings.batch_size * WINDOW
    for _ in range(settings.epochs):
        rows = list(range(len(examples)))
        order.shuffle(rows)
        batches: list[list[int]] = []
        for start in range(0, len(rows), window):
            some = {i: len(examples[i].ids) for i in rows[start : start + window]}
            if packed:
                near = {i: length * order.uniform(1 - JITTER, 1 + JITTER) for i, length in some.items()}
                batches += _dealt(sorted(some, key=near.__getitem__, reverse=True), some, settings.batch_size)
            else:
                alike = sorted(some, key=some.__getitem__)
                batches += [alike[i : i + settings.batch_size] for i in range(0, len(alike), settings.batch_size)]
        order.shuffle(batches)
        yield from batches


def _dealt(rows: Sequence[int], lengths: dict[int, int], size: int) -> list[list[int]]:
    """Deal rows, the longest first, to as few batches as hold them: in each round whoever has least takes first."""
    batches: list[list[int]] = [[] for _ in range(math.ceil(len(rows) / size))]
    tokens = [0] * len(batches)
    for start in range(0, len(rows), len(batches)):
        takers = sorted(range(len(batches)), key=tokens.__getitem__)
        for at, row in zip(takers, rows[start : start + len(batches)], strict=False):
            batches[at].append(row)
            tokens[at] += lengths[row]
    return batches


def learning_rate(settings: Train, step: int, steps: int) -> float:
    """Learning rate of a step counted from 0: linear warm-up, then constant, linear or cosine down to zero."""
    warm = math.ceil(settings.warmup_share * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    course = {"constant": 1.0, "linear": 1 - along, "cosine": (1 + math.cos(math.pi * along)) / 2}
    return settings.learning_rate * course[settings.schedule]


def _note_gradients(modules: dict[str, Any], state: State) -> None:
    for name in modules.keys() - state.with_gradient:
        gradient = modules[name].lora_B[ADAPTER].weight.grad
        if gradient is not None and bool(gradient.any()):
            state.with_gradient.add(name)


def _evaluate(
    model: Any, heldout: Sequence[Example], point: CurvePoint, state: State, folder: Path, settings: Train
) -> CurvePoint:
    """Measure the held-out loss after an epoch and keep the adapter where it is the best so far."""
    model.eval()
    loss = total(score(model, heldout, settings.most_tokens, ignore)).mean
    model.train()
    if loss < state.best_loss:
        state.best_loss, state.best_step = loss, state.step
        save_adapter(model, folder / f"best-{state.step}")
    return CurvePoint(point.step, point.loss, point.learning_rate, point.grad_norm, loss)


def _numbers(point: CurvePoint) -> dict[str, float]:
    values = asdict(point)
    values.pop("step")
    return {name: value for name, value in values.items() if value is not None}


def _checkpoint(folder: Path, steps: Steps, state: State) -> None:
    content = steps.state() | {
        "random": checkpoints.random_state(),
        "state": asdict(state) | {"with_gradient": sorted(state.with_gradient)},
    }
    checkpoints.write(folder, state.step, content)


def _resume(folder: Path, steps: Steps) -> State:
    """Load the newest complete checkpoint, or start afresh."""
    content = checkpoints.newest(folder)
    if content is None:
        return State()
    steps.restore(content)
    checkpoints.restore_random(content["random"])
    saved = content["state"]
    curve = [CurvePoint(**point) for point in saved["curve"]]
    return State(**saved | {"curve": curve, "with_gradient": set(saved["with_gradient"])})


def _finish(request: TrainAdapter, model: Any, state: State, resumed_from: int) -> Trained:
    """Put the best adapter into place and gather the evidence."""
    best = Path(request.scratch) / f"best-{state.best_step}"
    if not state.best_step:  # no held-out loss was finite: keep the last weights, for the gate to refuse
        save_adapter(model, best)
    shutil.copytree(best, request.folder, dirs_exist_ok=True)
    names = [name for name, _ in lora_modules(model)]
    return Trained(
        curve=tuple(state.curve),
        best_step=state.best_step,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        predicted_trainable=predicted_trainable(model, request.settings.r),
        modules=len(names),
        modules_without_gradient=tuple(name for name in names if name not in state.with_gradient),
        dtype=str(choose_dtype(request.settings.dtype)).removeprefix("torch."),
        resumed_from=resumed_from,
    )
