"""Holding merged weights against what was trained: predictions position by position, tensors one by one.

    KL(p || q) = sum over v of p(v) (ln p(v) - ln q(v)), in nats, summed over positions and divided once

Shapes in names: B rows, T positions, N supervised tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from loragate.engines.language_model import by_length, log_probabilities, padded
from loragate.engines.weight_files import stored_tensors
from loragate.perplexity import Nll
from loragate.record import MergeCandidate
from loragate.rendering import Example

FORWARD_TOKENS = 1024
"""Most token slots in one forward pass; distributions over the whole vocabulary are held for one pass only."""


def batches(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield the rows in batches of like length."""
    for numbers in by_length(examples, FORWARD_TOKENS):
        yield [examples[i] for i in numbers]


def divergence(p_NV: torch.Tensor, q_NV: torch.Tensor) -> float:
    """KL(p || q) of logarithms, summed over positions."""
    return (p_NV.exp() * (p_NV - q_NV)).sum(dtype=torch.float64).item()


def agreeing(p_NV: torch.Tensor, q_NV: torch.Tensor) -> int:
    """At how many positions both have the same likeliest token."""
    return int((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())


def score(name: str, trained: Any, candidate: Any, examples: Sequence[Example]) -> MergeCandidate:
    """Score a candidate against what was trained, on the supervised positions of some rows."""
    kl, agreed, nats, positions = 0.0, 0, 0.0, 0
    for batch in batches(examples):
        trained_NV, candidate_NV = log_probabilities(trained, batch), log_probabilities(candidate, batch)
        ids_BT, _, supervised_BT = padded(batch)
        said_N = candidate_NV.gather(1, ids_BT[supervised_BT][:, None])
        kl += divergence(trained_NV, candidate_NV)
        agreed += agreeing(trained_NV, candidate_NV)
        nats -= said_N.sum(dtype=torch.float64).item()
        positions += len(candidate_NV)
    return MergeCandidate(name, mean(kl, positions), mean(agreed, positions), Nll(nats, positions))


def mean(total: float, positions: int) -> float:
    """The mean over positions, NaN over none."""
    return total / positions if positions else math.nan


def compare_tensors(base: Path, merged: Path, modules: set[str], quantized: set[str]) -> dict[str, tuple[str, ...]]:
    """Compare tensors of two folders one at a time, so that memory holds two of them."""
    ours, theirs = stored_tensors(base), stored_tensors(merged)
    unchanged, altered = [], []
    missing = sorted(set(ours) ^ set(theirs))
    for name in sorted(set(ours) & set(theirs)):
        module = name.removesuffix(".weight")
        if ours[name].shape != theirs[name].shape:
            missing.append(name)
        elif _equal(ours[name].read(), theirs[name].read()):
            unchanged += [name] if module in modules else []
        elif module not in modules | quantized:
            altered.append(name)
    return {"unchanged": tuple(unchanged), "altered": tuple(altered), "missing": tuple(missing)}


def _equal(base: torch.Tensor, merged: torch.Tensor) -> bool:
    """Whether both are the same numbers in the merged tensor's format."""
    return torch.equal(base.to(merged.dtype), merged)


def tied(model: Any) -> bool:
    """Whether input and output embeddings are one tensor."""
    head = model.get_output_embeddings()
    return head is not None and head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
