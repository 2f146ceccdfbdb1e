"""Attention of packed rows, row by row: on a GPU by variable-length FlashAttention kernels, on a CPU one call a row.

A row's new nodes are the queries, its whole path from the root the keys: a causal mask, aligned at the end, is then the
tree's. No node is held against those of other rows, as a mask over the whole pack would have it. On a GPU keys and
values that rows share are gathered once a row and their gradients added up in float32; nothing is compiled for it, and
every size is fixed beforehand, so a CUDA graph can hold it.

Shapes in names: T nodes, K keys (the rows' paths end to end), R rows, H query heads, G key heads, D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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


@dataclass(frozen=True, slots=True)
class Row:
    """A row's queries and keys on a CPU.

    Attributes:
        first, end: Its new nodes.
        path_K: Nodes of its path; None where they are the new ones alone.
        mask_QK: Which key each query attends to; None where each attends to itself and those before.
    """

    first: int
    end: int
    path_K: torch.Tensor | None
    mask_QK: torch.Tensor | None


Rows = tuple[Row, ...]


def rows_of(starts: Sequence[int], paths: Sequence[torch.Tensor]) -> Rows:
    """Each row that has new nodes, by where those begin and by the nodes of its path."""
    rows = []
    for (first, end), path_K in zip(pairwise(starts), paths, strict=True):
        new, before = end - first, len(path_K) - (end - first)
        if new and before:
            rows.append(Row(first, end, path_K, torch.ones(new, len(path_K), dtype=torch.bool).tril(before)))
        elif new:
            rows.append(Row(first, end, None, None))
    return tuple(rows)


def can_segment(inner: Any) -> bool:
    """Whether a model's attention can go row by row: switch it to that if so."""
    config, weight = inner.config, next(inner.parameters())
    plain = not (getattr(config, "attn_logit_softcapping", None) or getattr(config, "attention_dropout", 0))
    known = getattr(inner, "_supports_attention_backend", False) and plain
    if not known or weight.device.type not in {"cpu", "cuda"} or (weight.is_cuda and not _has_kernels(inner)):
        return False
    AttentionInterface.register(SEGMENTED, _attention)
    AttentionMaskInterface.register(SEGMENTED, sdpa_mask)
    inner.set_attn_implementation(SEGMENTED)
    starts_R = torch.tensor([0, 4, 8], dtype=torch.int32, device=weight.device)
    segments = Segments(None, starts_R, starts_R, 4) if weight.is_cuda else rows_of([0, 4, 8], torch.arange(8).split(4))
    ids_BT = torch.arange(8, device=weight.device)[None]
    asked = {"input_ids": ids_BT, "position_ids": ids_BT % 4, "use_cache": False}
    try:
        with torch.no_grad():
            inner.base_model(**asked, **arguments(segments, weight.device))
    except (RuntimeError, TypeError, ValueError):  # attention of another make, or arguments that do not reach it
        inner.set_attn_implementation("sdpa")
        return False
    return True


def _has_kernels(inner: Any) -> bool:
    """Whether FlashAttention 2 takes a model's heads, in its number format, on its device."""
    width = getattr(inner.config, "head_dim", None) or inner.config.hidden_size // inner.config.num_attention_heads
    new = torch.cuda.get_device_capability(next(inner.parameters()).device)[0] >= OLDEST
    return new and inner.dtype in HALF and width <= WIDEST and width % 8 == 0


def arguments(segments: Segments | Rows, where: torch.device) -> dict[str, Any]:
    """What a model's forward pass is given: the mask is a sign that segments must come with it."""
    return {"attention_mask": torch.zeros(1, 1, 1, 1, dtype=SIGN, device=where), "segments": segments}


def _attention(
    module: Any, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, mask: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    segments = more.pop("segments", None)
    if segments is None:
        if mask is not None and mask.dtype == SIGN:
            raise RuntimeError("the segments of a pack did not reach attention")
        return sdpa_attention_forward(module, q_BHTD, k_BGTD, v_BGTD, mask, **more)
    scale = more.get("scaling") or q_BHTD.shape[-1] ** -0.5
    if isinstance(segments, tuple):
        return _row_by_row(q_BHTD, k_BGTD, v_BGTD, segments, scale), None
    q_THD, k_TGD, v_TGD = (one[0].transpose(0, 1) for one in (q_BHTD, k_BGTD, v_BGTD))
    out_THD: torch.Tensor = _Segmented.apply(q_THD, k_TGD, v_TGD, segments, scale)
    return out_THD[None], None


def _row_by_row(
    q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, rows: Rows, scale: float
) -> torch.Tensor:
    k_BHTD, v_BHTD = repeated(k_BGTD, q_BHTD), repeated(v_BGTD, q_BHTD)
    outs = []
    for row in rows:
        if row.path_K is None:
            keys_BHKD, values_BHKD = (one[:, :, row.first : row.end] for one in (k_BHTD, v_BHTD))
        else:
            keys_BHKD, values_BHKD = (one.index_select(2, row.path_K) for one in (k_BHTD, v_BHTD))
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(
                q_BHTD[:, :, row.first : row.end],
                keys_BHKD,
                values_BHKD,
                attn_mask=row.mask_QK,
                is_causal=row.mask_QK is None,
                scale=scale,
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous()


def repeated(one_BGTD: torch.Tensor, q_BHTD: torch.Tensor) -> torch.Tensor:
    """Keys or values once for every query head."""
    groups = q_BHTD.shape[1] // one_BGTD.shape[1]
    return one_BGTD.repeat_interleave(groups, dim=1) if groups > 1 else one_BGTD


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
