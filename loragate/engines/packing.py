"""Rows in packs: several rows in one forward pass, no padding, and what rows begin with alike computed once.

A pack holds its rows as a prefix tree. With causal attention the state of a position depends on what stands before it
alone, so a beginning that several rows share has one state, whatever follows; every row attends to its own path, and
positions count along the path. Each row's loss and gradient are those of the row by itself. A position may predict
several next tokens, one a row. What rows share is not shared where dropout makes each row's state random.

Shapes in names: T tokens of a pack, N predictions, D hidden width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from loragate.engines.language_model import AFTER_HEAD, by_length, device, inner_model, token_nats
from loragate.rendering import Example

CPU_TOKENS = 512
"""Tokens of a pack on a CPU, unless a row is longer: attention to all of a pack costs more the longer it is."""
LOGITS = 1 << 26
"""Logits held at once in float32; more predictions are scored a chunk at a time, and again in the backward pass."""
RECURRENT = frozenset({"conv", "linear_attention", "mamba", "recurrent", "chunked_attention"})
"""Kinds of layers whose state at a position does not follow from attention along its path."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows as one prefix tree.

    Attributes:
        ids_T, positions_T: Token of each node, and its position along the path from the root.
        attends_TT: Whether the row's node (first index) attends to another (second): itself and what is before it.
        nodes_N, targets_N, row_N: For each prediction the node that makes it, the token, and the row within the pack.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    attends_TT: torch.Tensor
    nodes_N: torch.Tensor
    targets_N: torch.Tensor
    row_N: torch.Tensor


@dataclass(frozen=True, slots=True)
class Passes:
    """How rows go through a model.

    Attributes:
        packed: Whether in packs; padded to the longest row of a group where the model's attention does not allow it.
        share: Whether rows of a pack share what they begin with.
        most_tokens: Most tokens in one forward pass.
    """

    packed: bool
    share: bool
    most_tokens: int

    def groups(self, examples: Sequence[Example]) -> Iterator[list[int]]:
        """Group row numbers into forward passes."""
        if self.packed:
            return packs(examples, self.most_tokens, share=self.share)
        return by_length(examples, self.most_tokens)

    def nats(self, model: Any, group: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood of each supervised token of a group: (nats_N, row_N)."""
        return packed_nats(model, group, share=self.share) if self.packed else token_nats(model, group)


def passes_for(model: Any, examples: Sequence[Example], forward_tokens: int, *, share: bool = True) -> Passes:
    """Choose how some rows go through a model.

    Args:
        forward_tokens: Most tokens in one forward pass; on a CPU no more are taken than pays.
        share: Whether the states of what rows share may be shared: not where dropout makes them random.
    """
    longest = max((len(example.ids) for example in examples), default=1)
    packed = can_pack(model, longest)
    most = min(forward_tokens, CPU_TOKENS) if packed and device().type == "cpu" else forward_tokens
    return Passes(packed, share, max(most, longest))


def can_pack(model: Any, longest: int) -> bool:
    """Whether a model's attention lets rows be packed: plain causal, or in windows that no row is longer than."""
    inner = inner_model(model)
    windowed = getattr(inner.config, "use_sliding_window", True)
    window = getattr(inner.config, "sliding_window", None) if windowed else None
    if window is not None and longest > window:
        return False
    kinds = set(getattr(inner.config, "layer_types", None) or ())
    return not kinds & RECURRENT and not getattr(inner, "_is_stateful", False)


def packs(examples: Sequence[Example], most_tokens: int, *, share: bool = True) -> Iterator[list[int]]:
    """Group row numbers into packs of at most `most_tokens` nodes, rows that begin alike beside each other."""
    order = sorted(range(len(examples)), key=lambda number: (examples[number].ids, number))
    group: list[int] = []
    nodes = 0
    for number in order:
        ids = examples[number].ids
        shared = common_length(examples[group[-1]].ids, ids) if group and share else 0
        if group and nodes + len(ids) - shared > most_tokens:
            yield group
            group, nodes, shared = [], 0, 0
        group.append(number)
        nodes += len(ids) - shared
    if group:
        yield group


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    shortest = min(len(one), len(other))
    differ = np.flatnonzero(np.asarray(one[:shortest]) != np.asarray(other[:shortest]))
    return int(differ[0]) if len(differ) else shortest


def pack(examples: Sequence[Example], *, share: bool = True) -> Pack:
    """Put rows, in the order of `packs`, into one tree; a row's first token is never predicted."""
    ids: list[int] = []
    positions: list[int] = []
    paths: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    fresh: list[int] = []
    for example in examples:
        shared = common_length(ids_at(ids, paths[-1]), example.ids) if paths and share else 0
        new = np.arange(len(ids), len(ids) + len(example.ids) - shared)
        paths.append(np.concatenate([paths[-1][:shared], new]) if shared else new)
        fresh.append(shared)
        ids += example.ids[shared:]
        positions += range(shared, len(example.ids))
    attends = np.zeros((len(ids), len(ids)), dtype=bool)
    nodes: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    for number, (example, path, shared) in enumerate(zip(examples, paths, fresh, strict=True)):
        attends[np.ix_(path[shared:], path)] = np.tri(len(path), dtype=bool)[shared:]
        predicted = example.predicted
        nodes += path[np.asarray(predicted, dtype=np.int64) - 1].tolist()
        targets += [example.ids[t] for t in predicted]
        rows += [number] * len(predicted)
    where = device()
    numbers = (
        torch.tensor(values, dtype=torch.long, device=where) for values in (ids, positions, nodes, targets, rows)
    )
    ids_T, positions_T, nodes_N, targets_N, row_N = numbers
    return Pack(ids_T, positions_T, torch.from_numpy(attends).to(where), nodes_N, targets_N, row_N)


def ids_at(ids: Sequence[int], path: "np.ndarray[Any, np.dtype[np.int64]]") -> list[int]:
    """Tokens along a path."""
    return [ids[node] for node in path]


def packed_nats(model: Any, examples: Sequence[Example], *, share: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each supervised token of some rows: (nats_N, row_N)."""
    packed = pack(examples, share=share)
    inner = inner_model(model)
    asked = {
        "input_ids": packed.ids_T[None],
        "attention_mask": _additive(packed.attends_TT, inner.dtype)[None, None],
        "position_ids": packed.positions_T[None],
        "use_cache": False,
    }
    if any(getattr(inner.config, name, None) for name in AFTER_HEAD):
        logits_NV = inner(**asked).logits[0, packed.nodes_N]
        return cross_entropy(logits_NV, packed.targets_N), packed.row_N
    hidden_ND = inner.base_model(**asked).last_hidden_state[0, packed.nodes_N]
    return head_nats(inner.get_output_embeddings(), hidden_ND, packed.targets_N), packed.row_N


def _additive(attends_TT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as what is added to attention's scores, which every implementation of it takes."""
    return torch.zeros(attends_TT.shape, dtype=dtype, device=attends_TT.device).masked_fill_(
        ~attends_TT, torch.finfo(dtype).min
    )


def head_nats(head: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Nats of targets under an output head, in float32; never more than `LOGITS` logits at once."""
    chunk = max(1, LOGITS // head.weight.shape[0])
    if len(targets_N) <= chunk:
        return cross_entropy(head(hidden_ND), targets_N)

    def scored(hidden_CD: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden_CD), targets_C)

    parts = zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    return torch.cat([checkpoint(scored, *part, use_reentrant=False) for part in parts])


def cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """-ln p(target) of each position, softmax in float32."""
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
