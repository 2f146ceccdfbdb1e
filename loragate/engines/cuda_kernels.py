"""What no library offers in a form that a CUDA graph can hold, as Triton kernels.

Shapes in names: C rows, V vocabulary.
"""

import torch
import triton
from triton import language as tl

BLOCK = 8192
"""Logits that a program reads at once."""
WARPS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _nats_row(logits, vocabulary, targets, nats, block: tl.constexpr, slope: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row: its nats, and with `slope` softmax - one-hot in the place of its logits."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    target = tl.load(targets + row)
    most, total = float("-inf"), 0.0
    for start in range(0, vocabulary, block):
        at = start + tl.arange(0, block)
        x = tl.load(logits + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(x))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(x - higher))
        most = higher
    norm = most + tl.log(total)
    tl.store(nats + row, norm - tl.load(logits + target).to(tl.float32))
    if slope:
        tl.debug_barrier()  # the target's logit is read before it is overwritten
        for start in range(0, vocabulary, block):
            at = start + tl.arange(0, block)
            x = tl.load(logits + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
            p = tl.exp(x - norm)
            tl.store(logits + at, tl.where(at == target, p - 1, p), mask=at < vocabulary)


def nats_and_slope(logits_CV: torch.Tensor, targets_C: torch.Tensor, wanted: bool) -> torch.Tensor:
    """Nats of each row in float32; with `wanted`, the logits become their gradient."""
    nats_C = torch.empty(len(logits_CV), dtype=torch.float32, device=logits_CV.device)
    if len(logits_CV):
        assert logits_CV.is_contiguous(), "rows are found by their number"
        _nats_row[(len(logits_CV),)](logits_CV, logits_CV.shape[1], targets_C, nats_C, BLOCK, wanted, num_warps=WARPS)
    return nats_C
