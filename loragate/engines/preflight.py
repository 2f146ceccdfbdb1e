"""Seconds before hours: the arithmetic of training, tried on the real model and real rows before anything is spent.

The reference is independent of this code: one row at a time, by the loss that the model's own class computes from
labels. What is tried is the very code that will train.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loragate.child import Progress, Report
from loragate.engines import steps
from loragate.engines.adapters import ADAPTER, adapted_model, lora_modules, predicted_trainable
from loragate.engines.flat import Flat
from loragate.engines.fused import quicken
from loragate.engines.language_model import device, read_examples
from loragate.engines.packing import Passes, passes_for
from loragate.rendering import Example, read_rendered
from loragate.work import Preflight, PreflightEvidence

STAGES = ("model", "losses", "gradients")


def try_out(request: Preflight, report: Report) -> PreflightEvidence:
    """Compare losses row by row, gradients with each other, and the fresh adapter with the base."""
    settings = request.settings
    model = adapted_model(request.base, settings).eval()  # without dropout: every pass gives the same
    quicken(model)
    flat = Flat(model)
    report(Progress(1, len(STAGES), STAGES[0]))
    rows = _some(read_examples(request.train), request.rows)
    passes = passes_for(model, rows, settings.most_tokens)
    with torch.no_grad():
        reference, found = _reference(model, rows), _found(model, rows, passes)
    report(Progress(2, len(STAGES), STAGES[1]))
    together = _gradient(model, flat, rows, replace(passes, most_tokens=sum(len(row.ids) for row in rows)))
    without = tuple(name for name, module in lora_modules(model) if not _has_gradient(module))
    apart = _gradient(model, flat, rows, replace(passes, most_tokens=1))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    report(Progress(3, len(STAGES), STAGES[2]))
    return PreflightEvidence(
        rows=len(rows),
        packed=passes.packed,
        start_difference=_start_difference(model, rows[-1]),
        dora=settings.dora,
        row_difference=max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(found, reference, strict=True)),
        gradient_difference=float((together - apart).norm() / together.norm()),
        unended=len(unended := _unended(request.train, frozenset(request.base.stop_ids))),
        first_unended=next(iter(unended), ""),
        modules=sum(1 for _ in lora_modules(model)),
        modules_without_gradient=without,
        trainable=trainable,
        predicted_trainable=predicted_trainable(model, settings.r),
        dtype=str(model.get_base_model().dtype).removeprefix("torch."),
    )


def _some(examples: Sequence[Example], count: int) -> list[Example]:
    """Rows of different lengths, none twice, that have something to learn; the longest last."""
    taught = sorted((e for e in examples if e.supervised), key=lambda example: (len(example.ids), example.ids))
    last = len(taught) - 1
    picked = {round(number * last / max(1, count - 1)) for number in range(count)} if taught else set()
    return [taught[number] for number in sorted(picked)]


def _unended(path: str, stop_ids: frozenset[int]) -> list[str]:
    """Places of the rows whose answers were rendered to end with a stop token and are not taught to, as they stand."""
    found = []
    with Path(path).open("rb") as file:
        for line in file:
            example, _, place = read_rendered(line)
            ends = sum(example.ids[end - 1] in stop_ids for _, end in example.spans if end <= len(example.ids))
            if ends < example.stopped_turns:
                found.append(place)
    return found


def _start_difference(model: Any, row: Example) -> float:
    """Largest difference that a fresh adapter makes to a logit: none, because its second half is zero.

    Comes last, because peft makes every adapter trainable again when it is switched back on.
    """
    ids = torch.tensor([row.ids], device=device())
    with torch.no_grad():
        adapted = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            base = model(input_ids=ids, use_cache=False).logits
    return float((adapted - base).abs().max())


def _reference(model: Any, rows: Sequence[Example]) -> list[float]:
    """Nats of each row by itself, as the model's own class computes its loss."""
    nats = []
    for row in rows:
        ids = torch.tensor([row.ids], device=device())
        labels = torch.where(torch.tensor([row.mask], device=device()), ids, -100)
        counted = int((labels[:, 1:] != -100).sum())  # noqa: PLR2004 - the label that says: not this one
        nats.append(float(model(input_ids=ids, labels=labels, use_cache=False).loss) * counted)
    return nats


def _found(model: Any, rows: Sequence[Example], passes: Passes) -> list[float]:
    """Nats of each row in the passes that will train."""
    nats = [0.0] * len(rows)
    for group in passes.groups(rows):
        nats_N, row_N = passes.owned_nats(model, passes.unit([rows[number] for number in group]))
        for value, owner in zip(nats_N.tolist(), row_N.tolist(), strict=True):
            nats[group[owner]] += value
    return nats


def _gradient(model: Any, flat: Flat, rows: Sequence[Example], passes: Passes) -> torch.Tensor:
    """The gradient of one optimizer step over some rows, by the functions that training uses."""
    flat.gradient.zero_()
    steps.accumulate(model, steps.prepare(rows, passes), passes, flat)
    return flat.gradient.clone()


def _has_gradient(module: Any) -> bool:
    gradient = module.lora_B[ADAPTER].weight.grad
    return gradient is not None and bool(gradient.any())
