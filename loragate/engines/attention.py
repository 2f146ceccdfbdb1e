"""Attention of packed rows by variable-length FlashAttention kernels, on CUDA devices that have them.

A row's new nodes are the queries, its whole path from the root the keys: the kernels' causal mask, aligned at the end,
is then the tree's. Keys and values that rows share are gathered once a row and their gradients added up in float32;
nothing is compiled for it, no mask is held, and every size is fixed beforehand, so a CUDA graph can hold it.

Shapes in names: T nodes, K keys (the rows' paths end to end), R rows, H query heads, G key heads, D width of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SEGMENTED = "loragate_segmented"
"""Name of this attention among transformers' own; without segments it is their SDPA."""
SIGN = torch.int8
"""Number format that no mask has."""
HALF = frozenset({torch.bfloat16, torch.float16})
WIDEST = 256
"""Widest head of FlashAttention 2; it wants a multiple of 8."""
OLDEST = 8
"""Compute capability from which FlashAttention 2 runs (Ampere)."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Where each row's queries and keys lie.

    Attributes:
        keys_K: Node of each key; one past the last node for keys that only fill up. None: keys are the nodes, in order.
        starts_R, key_starts_R: First query and first key of each row, and one past the last; int32, R + 1 of them.
        longest: No row has more keys.
    """

    keys_K: torch.Tensor | None
    starts_R: torch.Tensor
    key_starts_R: torch.Tensor
    longest: int


def kernels_for(inner: Any) -> bool:
    """Whether a model's attention can go through the kernels: switch it to them if so."""
    weight = next(inner.parameters())
    if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device)[0] < OLDEST:
        return False
    config = inner.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = not (getattr(config, "attn_logit_softcapping", None) or getattr(config, "attention_dropout", 0))
    known = getattr(inner, "_supports_attention_backend", False) and plain
    if inner.dtype not in HALF or width > WIDEST or width % 8 or not known:
        return False
    AttentionInterface.register(SEGMENTED, _attention)
    AttentionMaskInterface.register(SEGMENTED, sdpa_mask)
    inner.set_attn_implementation(SEGMENTED)
    try:
        _try(inner)
    except (RuntimeError, TypeError, ValueError):  # attention of another make, or arguments that do not reach it
        inner.set_attn_implementation("sdpa")
        return False
    return True


def _try(inner: Any) -> None:
    """One pass over two short rows."""
    where = next(inner.parameters()).device
    starts_R = torch.tensor([0, 4, 8], dtype=torch.int32, device=where)
    ids_BT = torch.arange(8, device=where)[None]
    with torch.no_grad():
        inner.base_model(
            input_ids=ids_BT,
            position_ids=ids_BT % 4,
            use_cache=False,
            **arguments(Segments(None, starts_R, starts_R, 4)),
        )


def arguments(segments: Segments) -> dict[str, Any]:
    """What a model's forward pass is given: the mask is a sign that segments must come with it."""
    sign = torch.zeros(1, 1, 1, 1, dtype=SIGN, device=segments.starts_R.device)
    return {"attention_mask": sign, "segments": segments}


def _attention(
    module: Any, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, mask: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    segments = more.pop("segments", None)
    if segments is None:
        if mask is not None and mask.dtype == SIGN:
            raise RuntimeError("the segments of a pack did not reach attention")
        return sdpa_attention_forward(module, q_BHTD, k_BGTD, v_BGTD, mask, **more)
    q_THD, k_TGD, v_TGD = (one[0].transpose(0, 1) for one in (q_BHTD, k_BGTD, v_BGTD))
    scale = more.get("scaling") or q_THD.shape[-1] ** -0.5
    out_THD: torch.Tensor = _Segmented.apply(q_THD, k_TGD, v_TGD, segments, scale)
    return out_THD[None], None


class _Segmented(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, segments: Segments, scale: float
    ) -> torch.Tensor:
        keys_KGD, values_KGD = _gathered(k_TGD, segments), _gathered(v_TGD, segments)
        out_THD, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - varlen has no other name
            q_THD, keys_KGD, values_KGD, *_sizes(segments), 0.0, True, False, scale=scale
        )
        ctx.save_for_backward(q_THD, k_TGD, v_TGD, out_THD, lse, seed, offset)
        ctx.segments, ctx.scale = segments, scale
        return out_THD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        q_THD, k_TGD, v_TGD, out_THD, lse, seed, offset = ctx.saved_tensors
        segments = ctx.segments
        keys_KGD, values_KGD = _gathered(k_TGD, segments), _gathered(v_TGD, segments)
        dq_THD, dk_KGD, dv_KGD = torch.ops.aten._flash_attention_backward(  # noqa: SLF001
            gradients[0].contiguous(), q_THD, keys_KGD, values_KGD, out_THD, lse,
            *_sizes(segments), 0.0, True, seed, offset, scale=ctx.scale,
        )  # fmt: skip
        return dq_THD, _added(dk_KGD, segments, len(k_TGD)), _added(dv_KGD, segments, len(v_TGD)), None, None


def _sizes(segments: Segments) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return segments.starts_R, segments.key_starts_R, segments.longest, segments.longest


def _gathered(one_TGD: torch.Tensor, segments: Segments) -> torch.Tensor:
    if segments.keys_K is None:
        return one_TGD
    return one_TGD.index_select(0, segments.keys_K.clamp(max=len(one_TGD) - 1))


def _added(gradient_KGD: torch.Tensor, segments: Segments, nodes: int) -> torch.Tensor:
    """Gradients of what rows share, added up in float32; those of keys that only fill up go past the last node."""
    if segments.keys_K is None:
        return gradient_KGD
    sums_TGD = gradient_KGD.new_zeros(nodes + 1, *gradient_KGD.shape[1:], dtype=torch.float32)
    return sums_TGD.index_add_(0, segments.keys_K, gradient_KGD.float())[:nodes].to(gradient_KGD.dtype)
