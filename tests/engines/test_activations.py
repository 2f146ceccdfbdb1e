"""What the backward pass needs, by hand for a tiny Llama: of every layer, and with gradient checkpointing of one."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from loragate.config import Train
from loragate.engines.activations import Kept, Way, kept, way_of
from loragate.engines.adapters import put_adapter

WIDTH, GATED, HEADS, GROUPS, HEAD, RANK = 64, 128, 4, 2, 16, 16
TOKENS = 400
FAST = Way(adapters=True, grouped=True, kernels=True)
PLAIN = Way(adapters=False, grouped=False, kernels=False)


def counted(way: Way, layers: int = 2, dtype: torch.dtype = torch.bfloat16, **keys: Any) -> Kept:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        intermediate_size=GATED,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
    )
    with torch.device("meta"):
        bare = LlamaForCausalLM(config).to(dtype)
        model = put_adapter(bare, Train.model_validate({"target_modules": "all", "r": RANK} | keys)).train()
    found = kept(model, way)
    assert found is not None
    return found.at(TOKENS)


def a_layer(size: int) -> int:
    """Bytes of a position in a layer, by what keeps them; the input of the first norm is the layer's input."""
    queries, keys = HEADS * HEAD, GROUPS * HEAD
    norms = 2 * (WIDTH * size + 4)
    attention = (queries + 2 * keys + queries) * size + 4 * HEADS
    adapters = (
        WIDTH + 3 * RANK + RANK + WIDTH + 2 * RANK + GATED + RANK
    ) * size  # o_proj's input is attention's output
    gated = 2 * GATED * size
    return norms + attention + adapters + gated


ROTATIONS = 2 * HEAD
"""Cosines and sines of a position."""


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 2), (torch.float32, 4)])
@pytest.mark.parametrize("layers", [2, 5])
def test_fused_layers_keep_what_is_computed_by_hand(dtype: torch.dtype, size: int, layers: int) -> None:
    found = counted(FAST, layers, dtype)
    hidden = WIDTH * size
    last_norm = hidden + 4
    # Embeddings have no gradient, so the first norm keeps nothing.
    assert found.whole == TOKENS * (layers * a_layer(size) - (hidden + 4) + ROTATIONS * size + last_norm)
    # With checkpointing every layer is given its input, the rotations and the positions (8 bytes).
    given = layers * hidden + ROTATIONS * size + 8
    assert found.checkpointed == TOKENS * (given + last_norm + a_layer(size) - hidden)


def test_layers_without_adapter_keep_no_input() -> None:
    both, attention = counted(FAST), counted(FAST, target_modules="attention")
    # Without an adapter on them gate_proj and up_proj keep neither their input nor A x, and down_proj likewise.
    a_layer_less = (WIDTH + 2 * RANK + GATED + RANK) * 2
    assert both.whole - attention.whole == TOKENS * 2 * a_layer_less
    assert both.checkpointed is not None
    assert attention.checkpointed == both.checkpointed - TOKENS * a_layer_less


def test_repeated_keys_and_values_are_kept_once_a_query_head() -> None:
    repeated = counted(Way(adapters=True, grouped=False, kernels=True))
    more = 2 * (HEADS - GROUPS) * HEAD * 2
    assert repeated.whole - counted(FAST).whole == TOKENS * 2 * more


def test_adapters_of_peft_keep_their_input_once_more_in_float32() -> None:
    plain = counted(Way(adapters=False, grouped=True, kernels=True))
    inputs, lows = 3 * WIDTH + WIDTH + 2 * WIDTH + GATED, 7 * RANK
    # Seven inputs in float32, and A x in it; the inputs that a fused adapter keeps in bfloat16 are then not kept, but
    # o_proj's, which attention keeps anyway.
    less = (WIDTH + WIDTH + GATED + 7 * RANK) * 2
    assert plain.whole - counted(FAST).whole == pytest.approx(TOKENS * 2 * ((inputs + lows) * 4 - less), rel=0.01)


@pytest.mark.parametrize("way", [FAST, PLAIN])
def test_with_checkpointing_a_further_layer_costs_its_input_and_nothing_else(way: Way) -> None:
    few, many = counted(way, 3), counted(way, 12)
    assert few.checkpointed is not None
    assert many.checkpointed == few.checkpointed + TOKENS * 9 * WIDTH * 2
    assert many.checkpointed < many.whole / 4


def test_what_depends_on_contents_is_not_counted() -> None:
    config = MixtralConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        intermediate_size=GATED,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        num_local_experts=2,
    )
    with torch.device("meta"):
        model = put_adapter(MixtralForCausalLM(config), Train()).train()
    assert kept(model, FAST) is None


@pytest.mark.parametrize(
    ("keys", "kind", "dtype", "liger", "way"),
    [
        ({}, "cuda", torch.bfloat16, True, FAST),
        ({}, "cuda", torch.bfloat16, False, Way(True, True, False)),
        ({}, "cuda", torch.float32, True, Way(True, False, True)),
        ({}, "cpu", torch.bfloat16, True, Way(True, False, False)),
        ({"dropout": 0.1}, "cuda", torch.bfloat16, True, Way(False, True, True)),
        ({"dora": True}, "cuda", torch.bfloat16, True, Way(False, True, True)),
        ({"method": "qlora"}, "cuda", torch.bfloat16, True, FAST),
        ({"method": "qlora", "quantization": "int8"}, "cuda", torch.bfloat16, True, Way(False, True, True)),
    ],
)
def test_way_follows_from_settings_and_device(
    keys: dict[str, Any], kind: str, dtype: torch.dtype, liger: bool, way: Way
) -> None:
    assert way_of(Train.model_validate(keys), kind, dtype, liger=liger) == way
