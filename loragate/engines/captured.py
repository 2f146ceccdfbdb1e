"""Optimizer steps as CUDA graphs: what the host launches is a graph, not thousands of operations.

A graph has fixed sizes, so packs are filled up: with nodes of rows of their own that predict nothing, and with
predictions that weigh nothing. A few graphs of different sizes, chosen from the packs of the first steps, share one
pool of memory; a pack that fits none of them goes operation by operation, as every pack does without this module.
Each graph is held against the operations before it is trusted.

Shapes in names: T nodes, K keys, R rows, N predictions; see packing.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loragate.config import Train
from loragate.engines.attention import Segments
from loragate.engines.language_model import inner_model
from loragate.engines.noise import noise_scale
from loragate.engines.packing import Feed, Pack, Passes, feed_nats
from loragate.engines.steps import Batch, Steps, one_pass, prepare
from loragate.errors import first_line
from loragate.rendering import Example

LOOKED_AT = 64
"""Steps whose packs the sizes are chosen from."""
MOST_GRAPHS = 4
PACKS_A_GRAPH = 8
"""Packs among those looked at that a further graph must be for: each takes about a second to record."""
MULTIPLE = 128
"""Nodes and predictions are rounded up to a multiple of this."""
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-2, 0.15
"""Largest difference of loss and gradient between a graph and the operations, as a share: in bfloat16 other sizes of
matrices alone make 0.05 of the gradient of a model with 28 layers (own measurement); a graph that is wrong makes 1."""
TINY = 1e-30
log = logging.getLogger(__name__)


class DiffersError(Exception):
    """A graph does not compute what the operations compute."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Room in a graph: nodes, keys beside the nodes, rows, predictions."""

    nodes: int
    more_keys: int
    rows: int
    predictions: int


class Graph:
    """A forward and backward pass over a pack of up to some sizes."""

    def __init__(self, steps: "CapturedSteps", sizes: Sizes) -> None:
        where, longest = steps.flat.vector.device, steps.passes.longest
        self.sizes, self._longest = sizes, longest

        def room(count: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(count, dtype=dtype, device=where)

        keys_K = room(sizes.nodes + sizes.more_keys) if steps.passes.share else None
        segments = Segments(keys_K, room(sizes.rows + 1, torch.int32), room(sizes.rows + 1, torch.int32), longest)
        basic = (room(sizes.nodes), room(sizes.nodes), room(sizes.predictions), room(sizes.predictions))
        noise_T = room(sizes.nodes, torch.float32) if steps.passes.noise else None
        self._feed = Feed(*basic, segments=segments, noise_T=noise_T)
        self._weight_N = room(sizes.predictions, torch.float32)
        self._steps = steps

    def fits(self, pack: Pack) -> bool:
        """Whether a pack has room in it."""
        needed = sizes_of(pack, self.sizes.nodes, self._longest)
        return all(getattr(needed, name) <= getattr(self.sizes, name) for name in Sizes.__slots__)

    def fill(self, pack: Pack, tokens: int) -> None:
        """Copy a pack into place; its predictions weigh one over the tokens of the step."""
        feed, segments = self._feed, self._feed.segments
        assert isinstance(segments, Segments)
        whole = fill_up(pack, self.sizes, self._longest)

        def put(room: torch.Tensor, numbers: Any) -> None:
            room.copy_(torch.from_numpy(numbers), non_blocking=True)

        put(feed.ids_T, whole.ids_T)
        put(feed.positions_T, whole.positions_T)
        put(segments.starts_R, whole.starts_R)
        put(segments.key_starts_R, whole.key_starts_R)
        if segments.keys_K is not None:
            put(segments.keys_K, whole.keys_K)
        put(feed.nodes_N, whole.nodes_N)
        put(feed.targets_N, whole.targets_N)
        put(self._weight_N, (np.arange(self.sizes.predictions) < len(pack.nodes_N)).astype(np.float32) / tokens)
        if feed.noise_T is not None:
            lengths_T = torch.from_numpy(whole.lengths_T).to(feed.noise_T.device)
            feed.noise_T.copy_(noise_scale(inner_model(self._steps.model), lengths_T, self._steps.passes.noise))

    def quiet(self) -> None:
        """Leave the noise out until it is filled again: two draws would never agree."""
        if self._feed.noise_T is not None:
            self._feed.noise_T.zero_()

    def run(self) -> None:
        """The pass, operation by operation."""
        self._steps.flat.spread()
        loss = (feed_nats(self._steps.model, self._feed) * self._weight_N).sum()
        loss.backward()
        self._steps.nats += loss.detach()
        self._steps.flat.gather()

    def replay(self) -> None:
        """The pass as a graph."""
        self._graph.replay()

    def capture(self, pool: Any) -> None:
        """Record the pass over what has been filled in."""
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self.run()


def on_a_stream(run: Callable[[], object]) -> None:
    """Run on a stream of its own, as what is to be captured must have done before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


def sizes_of(pack: Pack, nodes: int, longest: int) -> Sizes:
    """The room that a pack needs in a graph of so many nodes: what is left over fills rows of its own."""
    own, keys, rows = len(pack.ids_T), len(pack.keys_K), len(pack.starts_R) - 1
    filling = -(-max(0, nodes - own) // longest)
    return Sizes(max(nodes, own), keys - own, rows + filling, len(pack.nodes_N))


def fill_up(pack: Pack, sizes: Sizes, longest: int) -> Pack:
    """A pack of exactly some sizes: rows of their own take up the nodes, empty rows the rest of the rows.

    Keys that nothing attends to are one past the last node; predictions too many are of the first node.
    """
    nodes, keys, rows = len(pack.ids_T), len(pack.keys_K), len(pack.starts_R) - 1
    tail_T = np.arange(sizes.nodes - nodes)
    edges_R = np.minimum((np.arange(sizes.rows - rows) + 1) * longest, len(tail_T))
    unused_K = np.full(sizes.more_keys + nodes - keys, sizes.nodes)
    free_N = np.zeros(sizes.predictions - len(pack.nodes_N), dtype=np.int64)
    return Pack(
        ids_T=np.append(pack.ids_T, np.zeros_like(tail_T)),
        positions_T=np.append(pack.positions_T, tail_T % longest),
        ends_T=np.append(pack.ends_T, nodes + np.minimum((tail_T // longest + 1) * longest, len(tail_T))),
        lengths_T=np.append(pack.lengths_T, np.ones_like(tail_T)),
        starts_R=np.append(pack.starts_R, nodes + edges_R),
        key_starts_R=np.append(pack.key_starts_R, keys + edges_R),
        keys_K=np.concatenate([pack.keys_K, nodes + tail_T, unused_K]),
        nodes_N=np.append(pack.nodes_N, free_N),
        targets_N=np.append(pack.targets_N, free_N),
        row_N=np.append(pack.row_N, free_N),
    )


def choose_sizes(packs: Sequence[Pack], longest: int, count: int) -> list[Sizes]:
    """Sizes for some graphs, largest first: each takes about an equal number of the packs, a larger one takes any."""
    ordered = sorted(len(pack.ids_T) for pack in packs)
    quantiles = {ordered[max(0, -(-len(ordered) * part // count) - 1)] for part in range(1, count + 1)}
    chosen: list[Sizes] = []
    for most in sorted({-(-nodes // MULTIPLE) * MULTIPLE for nodes in quantiles}):
        needed = [sizes_of(pack, most, longest) for pack in packs if len(pack.ids_T) <= most]
        predictions = max(one.predictions for one in needed)
        more_keys, rows = (max(getattr(one, name) for one in needed) for name in ("more_keys", "rows"))
        chosen.append(Sizes(most, more_keys, rows, -(-predictions // MULTIPLE) * MULTIPLE))
    return chosen[::-1]


class CapturedSteps(Steps):
    """Optimizer steps as CUDA graphs.

    Attributes:
        nats: Nats per token of the step that is under way.
        graphs: Largest first.
    """

    def __init__(self, model: Any, passes: Passes, settings: Train) -> None:
        super().__init__(model, passes, settings)
        self.nats = torch.zeros((), device=self.flat.vector.device)
        self.graphs: list[Graph] = []
        self._update, self._norm = torch.cuda.CUDAGraph(), torch.zeros(())

    @property
    def ways(self) -> tuple[str, ...]:
        """How rows go through the model, for the record."""
        sizes = ", ".join(str(graph.sizes.nodes) for graph in self.graphs)
        return (*super().ways, *([f"CUDA graphs of {sizes} tokens"] if sizes else []))

    def capture(self, batches: Sequence[Sequence[Example]]) -> str:
        """Record graphs for the packs of some steps to come; return why there are none, or an empty text."""
        random = torch.cuda.get_rng_state()
        try:
            self._capture(batches)
        except (RuntimeError, DiffersError, NotImplementedError) as error:
            torch.cuda.synchronize()
            generator = torch.cuda.default_generators[self.nats.device.index]
            generator.graphsafe_set_state(generator.clone_state())  # a recording that broke off leaves it recording
            self.graphs = []
            log.warning("no CUDA graph, operation by operation: %s", first_line(error))
            return first_line(error)
        finally:
            self.flat.gather()
            self.flat.gradient.zero_()
            torch.cuda.set_rng_state(random)
        return ""

    def _capture(self, batches: Sequence[Sequence[Example]]) -> None:
        units = [unit for batch in batches for unit in prepare(batch, self.passes).units]
        packs = [unit for unit in units if isinstance(unit, Pack)]
        pool = torch.cuda.graph_pool_handle()
        for sizes in choose_sizes(packs, self.passes.longest, min(MOST_GRAPHS, -(-len(packs) // PACKS_A_GRAPH))):
            graph = Graph(self, sizes)
            self._prove(graph, next(pack for pack in packs if graph.fits(pack)), pool)
            self.graphs.append(graph)
        self._capture_update(pool)

    def _prove(self, graph: Graph, pack: Pack, pool: Any) -> None:
        """Record a graph and hold it against the operations on one pack, or against the largest graph, which was.

        The operations go through it once before: what they load and compile must not happen while it is recorded.

        Raises:
            DiffersError: It does not compute the same.
        """
        tokens = max(1, len(pack.nodes_N))
        for filled in (graph, *self.graphs[:1]):
            filled.fill(pack, tokens)
            filled.quiet()
        expected = self._measured(self.graphs[0].replay if self.graphs else lambda: on_a_stream(graph.run))
        torch.cuda.empty_cache()  # a graph keeps memory of its own
        graph.capture(pool)
        for found in (self._measured(graph.replay), self._measured(graph.replay)):
            loss = abs(found[0] - expected[0]) / max(expected[0], TINY)
            gradient = float((found[1] - expected[1]).norm()) / max(float(expected[1].norm()), TINY)
            if not (loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
                raise DiffersError(
                    f"its loss differs from the operations' by {loss:.1e}, its gradient by {gradient:.1e}"
                )

    def _measured(self, run: Callable[[], object]) -> tuple[float, torch.Tensor]:
        """Loss and gradient of a pass."""
        self.flat.gradient.zero_()
        self.nats.zero_()
        run()
        return self.nats.item(), self.flat.gradient.clone()

    def _capture_update(self, pool: Any) -> None:
        """Record clipping and AdamW; trying them out changes nothing."""
        self.flat.gradient.zero_()
        kept = [self.flat.vector.detach().clone()]
        if not self.optimizer.state:
            self.set_rate(0.0)
            on_a_stream(self.optimizer.step)
            for value in self.optimizer.state[self.flat.vector].values():
                value.zero_()
        held = list(self.optimizer.state[self.flat.vector].values())
        kept += [value.clone() for value in held]
        on_a_stream(self.update)
        with torch.cuda.graph(self._update, pool=pool):
            self._norm = self.update()
        with torch.no_grad():
            for value, before in zip([self.flat.vector, *held], kept, strict=True):
                value.copy_(before)

    def launch(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Start a step; return its nats per token, and the gradient's norm before it was clipped."""
        if not self.graphs:
            return super().launch(batch)
        self.flat.gradient.zero_()
        self.nats.zero_()
        for unit in batch.units:
            self._pass(unit, batch.tokens)
        self._update.replay()
        return self.nats.clone(), self._norm.clone()

    def _pass(self, unit: Pack | list[Example], tokens: int) -> None:
        graph = next((one for one in reversed(self.graphs) if isinstance(unit, Pack) and one.fits(unit)), None)
        if graph is not None and isinstance(unit, Pack):
            graph.fill(unit, tokens)
            graph.replay()
            return
        self.nats += one_pass(self.model, unit, tokens, self.passes, self.flat)
