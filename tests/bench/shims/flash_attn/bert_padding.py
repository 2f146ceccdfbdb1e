"""Padded rows to rows end to end and back, as flash-attn offers it.

Shapes in names: B rows, T positions, N positions that are not padding.
"""

from typing import Any

import torch


def unpad_input(hidden_states: Any, attention_mask: Any, unused_mask: Any = None) -> Any:
    """Leave the padding out: (rows end to end, where they were, where each starts, longest, lengths)."""
    mask_BT = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths_B = mask_BT.sum(-1, dtype=torch.int32)
    used_B = attention_mask.sum(-1, dtype=torch.int32)
    indices_N = mask_BT.flatten().nonzero().flatten()
    starts = torch.nn.functional.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden_states.flatten(0, 1)[indices_N], indices_N, starts, int(lengths_B.max()), used_B


def pad_input(hidden_states: Any, indices: Any, batch: int, seqlen: int) -> Any:
    """Put the padding back, as zeros."""
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return padded.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))


def index_first_axis(tensor: Any, indices: Any) -> Any:
    """Take rows of a tensor."""
    return tensor[indices]
