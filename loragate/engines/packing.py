"""Rows in packs: several rows in one forward pass, no padding, and what rows begin with alike computed once.

A pack holds its rows as a prefix tree. With causal attention the state of a position depends on what stands before it
alone, so a beginning that several rows share has one state, whatever follows; every row attends to its own path, and
positions count along the path. Each row's loss and gradient are those of the row by itself. A position may predict
several next tokens, one a row. What rows share is not shared where dropout or noise makes each row's state random.

Attention to the tree goes row by row where a model allows it, else by an explicit mask.

Shapes in names: T nodes of a pack, K keys (the rows' paths end to end), R rows, N predictions, D hidden width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loragate.engines.attention import Rows, Segments, arguments, can_segment, rows_of
from loragate.engines.heads import cross_entropy, head_nats
from loragate.engines.language_model import AFTER_HEAD, by_length, device, inner_model, token_nats
from loragate.engines.noise import noise_scale, noisy
from loragate.rendering import Example

Numbers = npt.NDArray[np.int64]

CPU_TOKENS = 1024
"""Tokens of a pack on a CPU, unless a row is longer: more of them only take more memory (own measurement)."""
RECURRENT = frozenset({"conv", "linear_attention", "mamba", "recurrent", "chunked_attention"})
"""Kinds of layers whose state at a position does not follow from attention along its path."""
MULTIPLE = 64
"""The longest row is rounded up to a multiple of this."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows as one prefix tree, depth first: what is below a node follows it directly.

    Attributes:
        ids_T, positions_T: Token of each node, and its position along the path from the root.
        ends_T: One past the last node below each node: it is attended to by itself and by those up to there.
        lengths_T: Length of the row that brought the node in.
        starts_R, key_starts_R: First new node of each row and first key of its path, and one past the last: R + 1.
        keys_K: Nodes along each row's path, row by row.
        nodes_N, targets_N, row_N: For each prediction the node that makes it, the token, and the row within the pack.
    """

    ids_T: Numbers
    positions_T: Numbers
    ends_T: Numbers
    lengths_T: Numbers
    starts_R: Numbers
    key_starts_R: Numbers
    keys_K: Numbers
    nodes_N: Numbers
    targets_N: Numbers
    row_N: Numbers

    @property
    def attends(self) -> npt.NDArray[np.bool_]:
        """Whether the row's node (first index) attends to another (second): itself and what is before it."""
        at_T = np.arange(len(self.ids_T))
        attends: npt.NDArray[np.bool_] = (at_T[None, :] <= at_T[:, None]) & (at_T[:, None] < self.ends_T[None, :])
        return attends


@dataclass(frozen=True, slots=True)
class Feed:
    """A pack as a model takes it: tensors on its device.

    Attributes:
        mask_TT: What is added to attention's scores; None where `segments` (on a CPU: rows) say who attends to whom.
        noise_T: Largest noise on each embedding (NEFTune); None for none.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    nodes_N: torch.Tensor
    targets_N: torch.Tensor
    mask_TT: torch.Tensor | None = None
    segments: Segments | Rows | None = None
    noise_T: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Passes:
    """How rows go through a model.

    Attributes:
        packed: Whether in packs; padded to the longest row of a group where the model's attention does not allow it.
        share: Whether rows of a pack share what they begin with.
        most_tokens: Most tokens in one forward pass.
        longest: Tokens of the longest row, rounded up, for attention row by row; 0: by a mask.
        noise: NEFTune's alpha while the model trains.
    """

    packed: bool
    share: bool
    most_tokens: int
    longest: int = 0
    noise: float = 0.0

    def groups(self, examples: Sequence[Example]) -> Iterator[list[int]]:
        """Group row numbers into forward passes."""
        if self.packed:
            return packs(examples, self.most_tokens, share=self.share)
        return by_length(examples, self.most_tokens)

    def unit(self, group: list[Example]) -> "Pack | list[Example]":
        """A group made ready for `unit_nats`."""
        return pack(group, share=self.share) if self.packed else group

    def unit_nats(self, model: Any, unit: "Pack | list[Example]") -> torch.Tensor:
        """Negative log-likelihood of each supervised token of a group: nats_N."""
        if isinstance(unit, Pack):
            return feed_nats(model, self.feed(model, unit))
        return token_nats(model, unit, self.noise)[0]

    def owned_nats(self, model: Any, unit: "Pack | list[Example]") -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood of each supervised token of a group, and whose it is: (nats_N, row_N)."""
        if isinstance(unit, Pack):
            return self.unit_nats(model, unit), torch.from_numpy(unit.row_N).to(device())
        return token_nats(model, unit, self.noise)

    def feed(self, model: Any, packed: Pack) -> Feed:
        """A pack on the model's device."""
        inner, where = inner_model(model), device()

        def on(numbers: npt.NDArray[Any], dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.from_numpy(numbers).to(where, dtype)

        mask_TT = noise_T = None
        segments: Segments | Rows | None = None
        if self.longest and where.type == "cpu":
            paths = torch.from_numpy(packed.keys_K).split(np.diff(packed.key_starts_R).tolist())
            segments = rows_of(packed.starts_R.tolist(), paths)
        elif self.longest:
            keys_K = on(packed.keys_K) if self.share else None
            starts_R, key_starts_R = (on(one, torch.int32) for one in (packed.starts_R, packed.key_starts_R))
            segments = Segments(keys_K, starts_R, key_starts_R, self.longest)
        else:
            mask_TT = _additive(on(packed.attends, torch.bool), inner.dtype)
        if self.noise and model.training:
            noise_T = noise_scale(inner, on(packed.lengths_T), self.noise)
        ids_T, positions_T = on(packed.ids_T), on(packed.positions_T)
        return Feed(ids_T, positions_T, on(packed.nodes_N), on(packed.targets_N), mask_TT, segments, noise_T)


def passes_for(
    model: Any, examples: Sequence[Example], forward_tokens: int, *, share: bool = True, noise: float = 0.0
) -> Passes:
    """Choose how some rows go through a model, and switch its attention to what that takes.

    Args:
        forward_tokens: Most tokens in one forward pass; on a CPU no more are taken than pays.
        share: Whether the states of what rows share may be shared: not where dropout makes them random.
        noise: NEFTune's alpha.
    """
    longest = max((len(example.ids) for example in examples), default=1)
    packed = can_pack(model, longest)
    most = most_of_a_pass(forward_tokens, longest, device().type, packed=packed)
    segmented = packed and can_segment(inner_model(model))
    rounded = -(-longest // MULTIPLE) * MULTIPLE if segmented else 0
    return Passes(packed, share and not noise, most, rounded, noise)


def most_of_a_pass(forward_tokens: int, longest: int, kind: str, *, packed: bool) -> int:
    """Most tokens that a forward pass takes of those it may: packs on a CPU no more than pays, and always a whole row.

    Args:
        kind: Of device: `cpu` or `cuda`.
    """
    paying = min(forward_tokens, CPU_TOKENS) if packed and kind == "cpu" else forward_tokens
    return max(paying, longest)


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
    """Group row numbers into packs of at most `most_tokens` nodes, rows that begin alike beside each other.

    They are about as few as hold the rows, and of about one size: a small one would cost more than its share.
    """
    order = sorted(range(len(examples)), key=lambda number: (examples[number].ids, number))
    ids = [examples[number].ids for number in order]
    shared = [common_length(*pair) if share else 0 for pair in zip([(), *ids], ids, strict=False)]
    whole = sum(map(len, ids)) - sum(shared)
    enough = whole / max(1, -(-whole // most_tokens))
    group: list[int] = []
    nodes = 0
    for number, row, begins in zip(order, ids, shared, strict=True):
        new = len(row) - begins
        if group and (nodes + new > most_tokens or nodes >= enough):
            yield group
            group, nodes, new = [], 0, len(row)
        group.append(number)
        nodes += new
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
    positions: list[Numbers] = []
    ends: list[int] = []
    lengths: list[int] = []
    paths: list[Numbers] = []
    starts: list[int] = []
    predictions: list[tuple[Numbers, list[int], list[int]]] = []
    for number, example in enumerate(examples):
        shared = common_length(examples[number - 1].ids, example.ids) if paths and share else 0
        start, length = len(ids), len(example.ids)
        new = np.arange(start, start + length - shared)
        for node in paths[-1][shared:] if paths else ():
            ends[node] = start
        paths.append(np.concatenate([paths[-1][:shared], new]) if shared else new)
        starts.append(start)
        ids += example.ids[shared:]
        positions.append(np.arange(shared, length))
        ends += [0] * len(new)
        lengths += [length] * len(new)
        predicted = example.predicted
        makes = paths[-1][np.asarray(predicted, dtype=np.int64) - 1]
        predictions.append((makes, [example.ids[t] for t in predicted], [number] * len(predicted)))
    for node in paths[-1]:
        ends[node] = len(ids)
    nodes, targets, rows = zip(*predictions, strict=True)
    whole = (ids, np.concatenate(positions), ends, lengths)
    edges = ([*starts, len(ids)], np.cumsum([0, *map(len, paths)]), np.concatenate(paths))
    made = (np.concatenate(nodes), np.concatenate(targets), np.concatenate(rows))
    return Pack(*(np.asarray(one, dtype=np.int64) for one in (*whole, *edges, *made)))


def feed_nats(model: Any, feed: Feed) -> torch.Tensor:
    """Negative log-likelihood of each prediction of a pack: nats_N."""
    inner = inner_model(model)
    asked: dict[str, Any] = {"input_ids": feed.ids_T[None]}
    if feed.noise_T is not None:
        asked = {"inputs_embeds": noisy(inner, feed.ids_T[None], feed.noise_T[None])}
    mask = {"attention_mask": None if feed.mask_TT is None else feed.mask_TT[None, None]}
    asked |= {"position_ids": feed.positions_T[None], "use_cache": False}
    asked |= mask if feed.segments is None else arguments(feed.segments, feed.ids_T.device)
    if any(getattr(inner.config, name, None) for name in AFTER_HEAD):
        return cross_entropy(inner(**asked).logits[0, feed.nodes_N], feed.targets_N)
    hidden_TD = inner.base_model(**asked).last_hidden_state[0]
    return head_nats(inner.get_output_embeddings(), hidden_TD, feed.nodes_N, feed.targets_N)


def _additive(attends_TT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as what is added to attention's scores, which every implementation of it takes."""
    return torch.zeros(attends_TT.shape, dtype=dtype, device=attends_TT.device).masked_fill_(
        ~attends_TT, torch.finfo(dtype).min
    )
