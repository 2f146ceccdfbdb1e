"""Training an adapter: one loop, every step on record, resumable to the bit.

The loss of an optimizer step is the sum of nats over its supervised tokens divided by their number, however many
forward passes it takes. Everything that decides the next step (weights, optimiser, random state, place in the data)
is in a checkpoint, which is written beside the last one and then renamed over it.
"""

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from loragate.child import Progress, Report, ignore
from loragate.config import Train
from loragate.engines.adapters import adapted_model, lora_modules, predicted_trainable, save_adapter
from loragate.engines.language_model import choose_dtype, read_examples
from loragate.engines.packing import Passes, passes_for
from loragate.engines.scoring import score
from loragate.perplexity import total
from loragate.record import CurvePoint
from loragate.rendering import Example
from loragate.work import TrainAdapter, Trained

CHECKPOINT = "checkpoint.pt"
WINDOW = 8
"""Batches sorted by length together: rows of a step are alike in length, steps still come in random order."""


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


def train(request: TrainAdapter, report: Report) -> Trained:
    """Train, or go on from the last complete checkpoint in `scratch`, and leave the best adapter in `folder`.

    Raises:
        ConfigError: A target module is not in the model.
    """
    settings, scratch = request.settings, Path(request.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    model = adapted_model(request.base, settings)
    examples, heldout = read_examples(request.train), read_examples(request.heldout)
    steps = list(plan(examples, settings))
    passes = passes_for(model, examples, settings.forward_tokens, share=settings.dropout == 0)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    state = _resume(scratch, model, optimizer)
    resumed_from = state.step
    per_epoch = math.ceil(len(examples) / settings.batch_size)
    for rows in steps[state.step :]:
        nats = accumulate(model, [examples[i] for i in rows], passes)
        point = _step(model, optimizer, nats, settings, state, len(steps))
        if state.step % per_epoch == 0:
            point = _evaluate(model, heldout, point, state, scratch, settings)
        state.curve.append(point)
        report(Progress(state.step, len(steps), "steps", _numbers(point)))
        if not math.isfinite(point.loss):
            break
        if state.step % settings.checkpoint_steps == 0 or state.step == len(steps):
            _checkpoint(scratch, model, optimizer, state)
    return _finish(request, model, state, resumed_from)


def plan(examples: Sequence[Example], settings: Train) -> Iterator[list[int]]:
    """Yield the row numbers of every optimizer step: each epoch every row once, in an order of its own."""
    order = random.Random(settings.seed)
    size, window = settings.batch_size, settings.batch_size * WINDOW
    for _ in range(settings.epochs):
        rows = list(range(len(examples)))
        order.shuffle(rows)
        batches: list[list[int]] = []
        for start in range(0, len(rows), window):
            alike = sorted(rows[start : start + window], key=lambda i: len(examples[i].ids))
            batches += [alike[i : i + size] for i in range(0, len(alike), size)]
        order.shuffle(batches)
        yield from batches


def learning_rate(settings: Train, step: int, steps: int) -> float:
    """Learning rate of a step counted from 0: linear warm-up, then constant, linear or cosine down to zero."""
    warm = math.ceil(settings.warmup_share * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    course = {"constant": 1.0, "linear": 1 - along, "cosine": (1 + math.cos(math.pi * along)) / 2}
    return settings.learning_rate * course[settings.schedule]


def accumulate(model: Any, batch: Sequence[Example], passes: Passes) -> float:
    """Add the gradient of a step's mean loss, over as many forward passes as it takes; return nats per token."""
    tokens = max(1, sum(len(example.predicted) for example in batch))
    nats = 0.0
    for rows in passes.groups(batch):
        loss = passes.nats(model, [batch[i] for i in rows])[0].sum() / tokens
        loss.backward()
        nats += loss.item()
    return nats


def _step(
    model: Any, optimizer: torch.optim.Optimizer, nats: float, settings: Train, state: State, steps: int
) -> CurvePoint:
    """Clip the gradient and step down it."""
    rate = learning_rate(settings, state.step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    _note_gradients(model, state)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return CurvePoint(state.step, nats, rate, norm)


def _note_gradients(model: Any, state: State) -> None:
    for name, module in lora_modules(model):
        if name not in state.with_gradient:
            gradient = module.lora_B["default"].weight.grad
            if gradient is not None and bool(gradient.any()):
                state.with_gradient.add(name)


def _evaluate(
    model: Any, heldout: Sequence[Example], point: CurvePoint, state: State, folder: Path, settings: Train
) -> CurvePoint:
    """Measure the held-out loss after an epoch and keep the adapter where it is the best so far."""
    model.eval()
    loss = total(score(model, heldout, settings.forward_tokens, ignore)).mean
    model.train()
    if loss < state.best_loss:
        state.best_loss, state.best_step = loss, state.step
        save_adapter(model, folder / f"best-{state.step}")
    return CurvePoint(point.step, point.loss, point.learning_rate, point.grad_norm, loss)


def _numbers(point: CurvePoint) -> dict[str, float]:
    values = asdict(point)
    values.pop("step")
    return {name: value for name, value in values.items() if value is not None}


def _checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer, state: State) -> None:
    content = {
        "adapter": get_peft_model_state_dict(model),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "state": asdict(state) | {"with_gradient": sorted(state.with_gradient)},
    }
    unfinished = folder / f"{CHECKPOINT}.unfinished"
    torch.save(content, unfinished)
    unfinished.replace(folder / CHECKPOINT)
    for old in folder.glob("best-*"):
        if old.name != f"best-{state.best_step}":
            shutil.rmtree(old)


def _resume(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> State:
    """Load the last complete checkpoint into model and optimizer, or start afresh."""
    path = folder / CHECKPOINT
    if not path.exists():
        return State()
    content = torch.load(path, weights_only=True)
    set_peft_model_state_dict(model, content["adapter"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"])
    if content["cuda_random"]:
        torch.cuda.set_rng_state_all(content["cuda_random"])
    saved = content["state"]
    curve = [CurvePoint(**point) for point in saved["curve"]]
    return State(saved["step"], saved["best_step"], saved["best_loss"], curve, set(saved["with_gradient"]))


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
