"""Packs: every row's loss and gradient are its own, whatever it is packed with and whatever it shares."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from loragate.engines import heads
from loragate.engines.packing import Passes, can_pack, common_length, pack, packs, passes_for
from loragate.rendering import Example

SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def row(*ids: int, taught: int = 2) -> Example:
    """A row of which the last few tokens are supervised."""
    spans = ((max(0, len(ids) - taught), len(ids)),) if taught else ()
    return Example(tuple(ids), spans, turns=1, stopped_turns=1, rendered_tokens=len(ids))


SYSTEM = (1, 2, 3, 4, 5, 6)
ROWS = (
    row(*SYSTEM, 7, 8, 9),
    row(*SYSTEM, 7, 8, 10, 11),
    row(*SYSTEM, 12),
    row(9, 8, 7, 6),
    row(*SYSTEM, 7, 8, 9),
    row(*SYSTEM, 7, 8, 9, 13, 14, taught=0),
)


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny Llama with an adapter that does something."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return adapted.eval()


def alone(model: Any, example: Example) -> torch.Tensor:
    """Nats of a row's supervised tokens by the model's own loss, one row at a time."""
    ids = torch.tensor([example.ids])
    labels = torch.where(torch.tensor([example.mask]), ids, -100)
    counted = int((labels[:, 1:] != -100).sum())
    return model(input_ids=ids, labels=labels).loss * counted if counted else torch.zeros(())


def packed_nats(model: Any, examples: Sequence[Example], *, share: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each supervised token of some rows, attention by a mask: (nats_N, row_N)."""
    passes = Passes(packed=True, share=share, most_tokens=0)
    return passes.owned_nats(model, passes.unit(list(examples)))


def sums(nats: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.zeros(count).index_add(0, rows, nats)


@pytest.mark.parametrize("share", [True, False])
def test_each_row_s_loss_is_that_of_the_row_alone(model: Any, share: bool) -> None:
    order = next(packs(ROWS, 1000, share=share))
    examples = [ROWS[number] for number in order]
    with torch.no_grad():
        found = sums(*packed_nats(model, examples, share=share), len(examples))
        expected = torch.stack([alone(model, example) for example in examples])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("share", [True, False])
def test_gradient_is_that_of_the_rows_one_by_one(model: Any, share: bool) -> None:
    ordered = [ROWS[number] for number in next(packs(ROWS, 1000, share=share))]
    together = gradient(model, packed_nats(model, ordered, share=share)[0].sum())
    expected = gradient(model, torch.stack([alone(model, example) for example in ROWS]).sum())
    assert (together - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("share", [True, False])
def test_attention_row_by_row_has_the_losses_and_gradients_of_the_rows_one_by_one(share: bool) -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["k_proj", "v_proj"], init_lora_weights=False)).eval()
    expected = torch.stack([alone(adapted, example) for example in ROWS])
    slope = gradient(adapted, expected.sum())
    passes = passes_for(adapted, ROWS, 1000, share=share)
    assert passes.longest
    order = next(passes.groups(ROWS))
    nats, owners = passes.owned_nats(adapted, passes.unit([ROWS[number] for number in order]))
    assert torch.allclose(sums(nats, owners, len(ROWS)), expected[order], rtol=1e-5, atol=1e-5)
    assert (gradient(adapted, nats.sum()) - slope).norm() <= 1e-5 * slope.norm()
    assert adapted(input_ids=torch.tensor([ROWS[0].ids])).logits.isfinite().all()  # without packs: plain SDPA


def test_a_model_whose_attention_the_rows_do_not_reach_goes_by_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    other = LlamaForCausalLM(LlamaConfig(**SIZES))
    forward = type(other.model).forward

    def swallowing(self: Any, *args: Any, segments: Any = None, **more: Any) -> Any:
        return forward(self, *args, **more)

    monkeypatch.setattr(type(other.model), "forward", swallowing)
    passes = passes_for(other, ROWS, 1000)
    assert (passes.packed, passes.longest) == (True, 0)
    assert other.config._attn_implementation == "sdpa"


TOKENS = st.lists(st.integers(1, 4), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(TOKENS, st.integers(0, 7)), min_size=1, max_size=6), most=st.integers(1, 30))
def test_any_rows_in_any_packs_keep_their_losses(model: Any, rows: list[tuple[list[int], int]], most: int) -> None:
    examples = [row(*ids, taught=taught) for ids, taught in rows]
    found = torch.zeros(len(examples))
    groups = list(packs(examples, most))
    with torch.no_grad():
        for group in groups:
            nats, owners = packed_nats(model, [examples[number] for number in group])
            found[group] = sums(nats, owners, len(group))
        expected = torch.stack([alone(model, example) for example in examples])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert sorted(number for group in groups for number in group) == list(range(len(examples)))
    for group in groups:
        assert len(group) == 1 or len(pack([examples[number] for number in group]).ids_T) <= most


def test_what_rows_begin_with_alike_is_there_once() -> None:
    ordered = [ROWS[number] for number in next(packs(ROWS, 1000))]
    packed = pack(ordered)
    assert len(packed.ids_T) == len(SYSTEM) + len((7, 8, 9, 13, 14)) + len((10, 11)) + len((12,)) + 4
    assert len(pack(ordered, share=False).ids_T) == sum(len(example.ids) for example in ordered)
    assert len(packed.targets_N) == 2 * 5


def test_every_node_attends_to_its_own_path_alone() -> None:
    packed = pack([row(1, 2, 3), row(1, 2, 4), row(5)])
    assert packed.ids_T.tolist() == [1, 2, 3, 4, 5]
    assert packed.positions_T.tolist() == [0, 1, 2, 2, 0]
    assert packed.attends.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert packed.nodes_N.tolist() == [0, 1, 0, 1]
    assert packed.targets_N.tolist() == [2, 3, 2, 4]
    assert packed.row_N.tolist() == [0, 0, 1, 1]


@given(TOKENS, TOKENS)
def test_common_length_is_that_of_the_longest_common_beginning(one: Sequence[int], other: Sequence[int]) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert len(one) == length or len(other) == length or one[length] != other[length]


def test_logits_are_scored_a_chunk_at_a_time_with_the_same_loss_and_gradient(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packed_nats(model, ROWS[:3])[0]
    expected = gradient(model, whole.sum())
    monkeypatch.setitem(heads.LOGITS, "cpu", 2 * SIZES["vocab_size"])
    parts = packed_nats(model, ROWS[:3])[0]
    assert torch.allclose(parts, whole)
    assert torch.allclose(gradient(model, parts.sum()), expected, rtol=1e-5, atol=1e-7)


def test_rows_longer_than_a_window_are_padded_and_shorter_ones_packed() -> None:
    windowed = MistralForCausalLM(MistralConfig(sliding_window=8, **SIZES))
    assert can_pack(windowed, 8)
    assert not can_pack(windowed, 9)
    assert passes_for(windowed, [row(*range(1, 12))], 100) == Passes(packed=False, share=True, most_tokens=100)
    assert passes_for(windowed, [row(1, 2)], 100).packed


def test_model_with_recurrent_layers_is_padded(model: Any) -> None:
    other = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert can_pack(other, 10)
    other.config.layer_types = ["full_attention", "linear_attention"]
    assert not can_pack(other, 10)


def test_windowed_rows_that_fit_have_the_losses_of_the_rows_alone() -> None:
    torch.manual_seed(0)
    windowed = MistralForCausalLM(MistralConfig(sliding_window=16, **SIZES)).eval()
    with torch.no_grad():
        found = sums(*packed_nats(windowed, ROWS[:3]), 3)
        expected = torch.stack([alone(windowed, example) for example in ROWS[:3]])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
