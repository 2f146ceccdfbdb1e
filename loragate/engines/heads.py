"""The output head and its loss, a chunk of predictions at a time: all logits of a step are never held.

The gradient with respect to the hidden states is made beside the loss, where the logits are at hand, so nothing of a
chunk outlives it and nothing is computed twice: d nats / d logits = softmax - one-hot, row by row.

Shapes in names: T positions, N predictions, C predictions of a chunk, D hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

LOGITS = {"cpu": 1 << 26, "cuda": 1 << 27}
"""Logits held at once: float32 on a CPU (4 bytes), the model's own format on a GPU (2 bytes)."""
SCORED = 2
"""Where no gradient is wanted, chunks are this many times smaller: nothing else takes as much memory then."""
MULTIPLE = 128
"""Predictions of a chunk are a multiple of this where they can be: matrix products like round numbers."""


def chunk_size(vocabulary: int, where: str, *, wanted: bool = True) -> int:
    """How many predictions are scored at once, with their gradient or without."""
    most = max(1, LOGITS[where] // vocabulary // (1 if wanted or where == "cpu" else SCORED))
    return most // MULTIPLE * MULTIPLE or most


def head_nats(head: Any, hidden_TD: torch.Tensor, nodes_N: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Nats of targets under an output head, each predicted by one position: nats_N, the softmax in float32."""
    chunk = chunk_size(head.weight.shape[0], hidden_TD.device.type, wanted=torch.is_grad_enabled())
    if isinstance(head, torch.nn.Linear) and not (head.weight.requires_grad and torch.is_grad_enabled()):
        nats_N: torch.Tensor = _HeadNats.apply(hidden_TD, head.weight, head.bias, nodes_N, targets_N, chunk)
        return nats_N

    def scored(hidden_CD: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden_CD), targets_C)

    parts = zip(hidden_TD[nodes_N].split(chunk), targets_N.split(chunk), strict=True)
    return torch.cat([checkpoint(scored, *part, use_reentrant=False) for part in parts])


def cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """-ln p(target) of each position, softmax in float32."""
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


class _HeadNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: torch.Tensor, weight_VD: torch.Tensor, bias_V: Any, *more: Any) -> torch.Tensor:
        nodes_N, targets_N, chunk = more
        wanted = ctx.needs_input_grad[0]
        nats, slopes = [], []
        for nodes_C, targets_C in zip(nodes_N.split(chunk), targets_N.split(chunk), strict=True):
            logits_CV = torch.nn.functional.linear(hidden_TD.index_select(0, nodes_C), weight_VD, bias_V)
            nats_C, slope_CV = _slope(logits_CV, targets_C, wanted)
            nats.append(nats_C)
            if wanted:
                slopes.append(slope_CV @ weight_VD)
            del logits_CV, slope_CV  # before the next are made
        if wanted:
            ctx.save_for_backward(torch.cat(slopes), nodes_N)
            ctx.positions = len(hidden_TD)
        return torch.cat(nats)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        slope_ND, nodes_N = ctx.saved_tensors
        sums_TD = slope_ND.new_zeros(ctx.positions, slope_ND.shape[1], dtype=torch.float32)
        sums_TD.index_add_(0, nodes_N, slope_ND * gradients[0][:, None])
        return sums_TD.to(slope_ND.dtype), None, None, None, None, None


def _slope(logits_CV: torch.Tensor, targets_C: torch.Tensor, wanted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of each row, and their gradient with respect to its logits, in the logits' own place on a GPU."""
    if logits_CV.is_cuda:
        from loragate.engines.cuda_kernels import nats_and_slope

        return nats_and_slope(logits_CV, targets_C, wanted), logits_CV
    nats_C = cross_entropy(logits_CV, targets_C)
    if not wanted:
        return nats_C, logits_CV
    slope_CV = torch.softmax(logits_CV.float(), dim=-1)
    slope_CV[torch.arange(len(targets_C)), targets_C] -= 1
    return nats_C, slope_CV.to(logits_CV.dtype)
