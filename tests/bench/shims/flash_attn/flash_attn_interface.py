"""Attention as flash-attn offers it, forward and backward by PyTorch's kernels of FlashAttention 2.

Shapes in names: B rows, T positions, H heads, D width of a head, R rows end to end.
"""

from typing import Any

import torch

flash_attn_gpu = torch.ops.aten
"""What the package calls its compiled part: who imports this name asks whether that part is there."""


class _Attention(torch.autograd.Function):
    """Attention of rows end to end, each to itself."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, starts: Any, settings: Any) -> Any:
        dropout, causal, more = settings
        q_THD, k_THD, v_THD = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
        out, log_sums, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q_THD, k_THD, v_THD, *starts, dropout, causal, return_debug_mask=False, **more
        )
        ctx.save_for_backward(q_THD, k_THD, v_THD, out, log_sums, *starts[:2], state, unused)
        ctx.longest, ctx.settings = starts[2:], settings
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q_THD, k_THD, v_THD, out, log_sums, q_starts, k_starts, state, unused = ctx.saved_tensors
        dropout, causal, more = ctx.settings
        given = (grads[0].contiguous(), q_THD, k_THD, v_THD, out, log_sums, q_starts, k_starts, *ctx.longest)
        grads_THD = torch.ops.aten._flash_attention_backward(*given, dropout, causal, state, unused, **more)
        return *grads_THD, None, None


def flash_attn_varlen_func(  # noqa: PLR0913 - the signature is the package's
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Any:
    """Attention of rows end to end: THD tensors and where each row starts."""
    sides = {
        f"window_size_{side}": None if size < 0 else size
        for side, size in zip(("left", "right"), window_size, strict=True)
    }
    starts = (cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k))
    attention: Any = _Attention  # its `apply` has no types
    return attention.apply(q, k, v, starts, (dropout_p, causal, {"scale": softmax_scale, **sides}))


def flash_attn_func(  # noqa: PLR0913 - the signature is the package's
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Any:
    """Attention of rows of one length: BTHD tensors."""
    places = []
    for tensor in (q, k):
        rows, length = tensor.shape[:2]
        starts = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=tensor.device)
        places.append((starts, length))
    (q_starts, q_length), (k_starts, k_length) = places
    flat = (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    where = (q_starts, k_starts, q_length, k_length)
    return flash_attn_varlen_func(*flat, *where, dropout_p, softmax_scale, causal, window_size).view(q.shape)


def flash_attn_with_kvcache(*_: object, **__: object) -> Any:
    """Refuse: nothing that is measured generates."""
    raise NotImplementedError("this stand-in for flash-attn trains; it does not generate")
