"""Packs that are filled up to the sizes of a CUDA graph: what is added changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import ROWS, TOKENS, model, row

from loragate.engines.captured import Sizes, choose_sizes, fill_up, sizes_of
from loragate.engines.packing import Pack, Passes, pack, packs

LONGEST = 16
__all__ = ["model"]


def packed(numbers: list[int], *, share: bool = True) -> Pack:
    examples = [ROWS[number] for number in numbers]
    order = next(packs(examples, 1000, share=share))
    return pack([examples[number] for number in order], share=share)


def nats(model: Any, one: Pack) -> torch.Tensor:
    with torch.no_grad():
        return Passes(packed=True, share=True, most_tokens=0).unit_nats(model, one)


@pytest.mark.parametrize("share", [True, False])
def test_a_filled_pack_has_the_losses_of_the_pack(model: Any, share: bool) -> None:
    small = packed([0, 1, 3], share=share)
    room = sizes_of(small, 57, LONGEST)
    whole = fill_up(small, Sizes(57, room.more_keys + 5, room.rows + 3, 9), LONGEST)
    assert torch.allclose(nats(model, whole)[: len(small.nodes_N)], nats(model, small), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(TOKENS, st.integers(0, 7)), min_size=1, max_size=6),
    more=st.tuples(*[st.integers(0, 40)] * 4),
)
def test_any_filled_pack_is_whole(rows: list[tuple[list[int], int]], more: tuple[int, int, int, int]) -> None:
    examples = [row(*ids, taught=taught) for ids, taught in rows]
    group = next(packs(examples, 1000))
    small = pack([examples[number] for number in group])
    room = sizes_of(small, len(small.ids_T) + more[0], LONGEST)
    sizes = Sizes(room.nodes, room.more_keys + more[1], room.rows + more[2], room.predictions + more[3])
    whole = fill_up(small, sizes, LONGEST)
    assert (len(whole.ids_T), len(whole.keys_K)) == (sizes.nodes, sizes.nodes + sizes.more_keys)
    assert (len(whole.starts_R), len(whole.nodes_N)) == (sizes.rows + 1, sizes.predictions)
    assert (whole.starts_R[-1], np.diff(whole.starts_R).min() >= 0) == (sizes.nodes, True)
    queries, keys = np.diff(whole.starts_R), np.diff(whole.key_starts_R)
    assert bool((queries <= keys).all())
    assert int(keys.max()) <= LONGEST
    for number in range(sizes.rows):  # the last keys of a row are its own nodes, and its keys attend in order
        path = whole.keys_K[whole.key_starts_R[number] : whole.key_starts_R[number + 1]]
        own = np.arange(whole.starts_R[number], whole.starts_R[number + 1])
        assert path[len(path) - len(own) :].tolist() == own.tolist()
        assert all(whole.attends[own[-1], path]) if len(own) else True
        assert not len(own) or whole.attends[own[-1]].sum() == len(path)
    assert set(whole.keys_K[whole.key_starts_R[-1] :]) <= {sizes.nodes}


def test_sizes_are_those_of_the_packs_and_a_larger_graph_takes_what_a_smaller_takes() -> None:
    many = [packed(numbers) for numbers in ([0], [0, 1], [0, 1, 2], [3], [0, 1, 2, 3, 4])]
    chosen = choose_sizes(many, LONGEST, 3)
    assert [one.nodes for one in chosen] == sorted({one.nodes for one in chosen}, reverse=True)
    for one in many:
        assert any(fits(one, sizes) for sizes in chosen)
    for smaller, larger in zip(chosen[1:], chosen, strict=False):
        assert all(fits(one, larger) for one in many if fits(one, smaller))


def fits(one: Pack, sizes: Sizes) -> bool:
    needed = sizes_of(one, sizes.nodes, LONGEST)
    return all(getattr(needed, name) <= getattr(sizes, name) for name in Sizes.__slots__)
