"""Streamed merges: equal to peft's, in files like the base's, refused where nothing would fit; QLoRA's two ways."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from prepared import describe, pairs, render
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loragate.artifact_work import MergeAdapter, MergeBoth
from loragate.child import ignore
from loragate.engines.adapters import save_adapter
from loragate.engines.language_model import load_weights, read_examples, with_adapter
from loragate.engines.merge_compare import score
from loragate.engines.merging import merge, merge_both, merged_by_peft
from loragate.engines.streamed_merge import dequantised, plan_merge
from loragate.engines.weight_files import INDEX, stored_tensors
from loragate.errors import StepError
from loragate.work import Model

Tensors = dict[str, torch.Tensor]
Dtype = Literal["float32", "bfloat16"]
LAST = "base_model.model.model.layers.1.self_attn.o_proj"


def adapter(base: Path, folder: Path, size: float = 0.02, **settings: Any) -> Path:
    """Save an adapter with random matrices of the given size for a base."""
    torch.manual_seed(3)
    config = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(config | settings)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_A" in name:
            torch.nn.init.normal_(parameter, std=size)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in three files."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) == 3
    return folder


@pytest.fixture(scope="module")
def plain(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on every linear layer."""
    return adapter(sharded, tmp_path_factory.mktemp("plain") / "adapter")


def read(folder: Path) -> Tensors:
    return {name: tensor.read() for name, tensor in stored_tensors(folder).items()}


def streamed(model: Model, folder: Path) -> Tensors:
    how = merge(MergeAdapter(model, str(folder)), ignore)
    assert how.way == "streamed"
    return read(folder)


def by_peft(model: Model) -> Tensors:
    return dict(merged_by_peft(load_weights(replace(model, adapter=None)), model).state_dict())


KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"down_proj": 3}},
    "DoRA": {"use_dora": True},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_float32_merge_equals_peft_s(sharded: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = adapter(sharded, tmp_path / "adapter", **settings)
    model = Model(describe(sharded), str(folder), dtype="float32")
    ours, theirs, base = streamed(model, tmp_path / "merged"), by_peft(model), read(sharded)
    for name, tensor in ours.items():
        assert torch.equal(tensor, base[name]) == ("_proj" not in name)
        if "use_dora" in settings:  # peft multiplies B and A through a forward pass on the identity
            assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-7)
        else:
            assert torch.equal(tensor, theirs[name])


def test_a_bfloat16_merge_is_nearer_to_the_exact_one_than_peft_s(sharded: Path, plain: Path, tmp_path: Path) -> None:
    model = Model(describe(sharded), str(plain), dtype="bfloat16")
    ours, theirs = streamed(model, tmp_path / "merged"), by_peft(model)
    exact = by_peft(replace(model, dtype="float32"))
    seen = load_weights(replace(model, adapter=None)).state_dict()
    base = read(sharded)
    for name, tensor in ours.items():
        assert tensor.dtype == torch.bfloat16
        delta = exact[name] - base[name]
        precise = delta + seen[name]  # onto the base as training saw it, in bfloat16
        once = 2.0**-8 * precise.abs() + 1e-8
        assert bool(((tensor - precise).abs() <= once).all())
        assert bool(((tensor - theirs[name]).float().abs() <= 2 * once + 2.0**-8 * delta.abs()).all())
        assert (tensor - precise).abs().sum() <= (theirs[name] - precise).abs().sum()


def test_a_merge_has_the_base_s_files_and_its_bytes_are_those_of_safetensors(
    sharded: Path, plain: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    streamed(Model(describe(sharded), str(plain), dtype="float32"), merged)
    assert (merged / INDEX).read_text() == (sharded / INDEX).read_text()
    for path in merged.glob("*.safetensors"):
        save_file(load_file(path), tmp_path / "again", metadata={"format": "pt"})
        assert path.read_bytes() == (tmp_path / "again").read_bytes()
        assert load_file(path).keys() == load_file(sharded / path.name).keys()
    loaded, report = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_merge_says_its_number_format_where_the_base_said_its(sharded: Path, plain: Path, tmp_path: Path) -> None:
    model = Model(describe(sharded), str(plain), dtype="bfloat16")
    streamed(model, tmp_path / "merged")
    base, merged = (json.loads((folder / "config.json").read_text()) for folder in (sharded, tmp_path / "merged"))
    assert merged == base | {"dtype": "bfloat16"}
    total = sum(tensor.stop - tensor.start for tensor in stored_tensors(tmp_path / "merged").values())
    assert json.loads((tmp_path / "merged" / INDEX).read_text())["metadata"]["total_size"] == total


def rename_a_module(tensors: Tensors, settings: dict[str, Any]) -> None:
    for part in ("lora_A", "lora_B"):
        tensors[f"{LAST.replace('o_proj', 'out')}.{part}.weight"] = tensors.pop(f"{LAST}.{part}.weight")


def adapt_the_tied_head(tensors: Tensors, settings: dict[str, Any]) -> None:
    for part in ("lora_A", "lora_B"):
        tensors[f"base_model.model.lm_head.{part}.weight"] = tensors[f"{LAST}.{part}.weight"].clone()


def lose_a_matrix(tensors: Tensors, settings: dict[str, Any]) -> None:
    del tensors[f"{LAST}.lora_B.weight"]


def poison(tensors: Tensors, settings: dict[str, Any]) -> None:
    tensors[f"{LAST}.lora_B.weight"][0, 0] = torch.inf


def say_another_rank(tensors: Tensors, settings: dict[str, Any]) -> None:
    settings["r"] = 5


def cut(tensors: Tensors, settings: dict[str, Any]) -> None:
    tensors[f"{LAST}.lora_A.weight"] = tensors[f"{LAST}.lora_A.weight"][:, 1:].clone()


def forget_the_magnitudes(tensors: Tensors, settings: dict[str, Any]) -> None:
    settings["use_dora"] = True


FAULTS: dict[str, tuple[Callable[[Tensors, dict[str, Any]], None], str]] = {
    "a module that the base lacks": (rename_a_module, "1 of 14 modules of the adapter fit no tensor of the base"),
    "an adapter on tied embeddings": (adapt_the_tied_head, "changes lm_head, whose weight the model shares"),
    "one matrix of two": (lose_a_matrix, "o_proj: the adapter has only one of the two"),
    "an infinity": (poison, r"o_proj\.weight: the merged tensor has a NaN or an infinity"),
    "another rank": (say_another_rank, "of rank 4, its settings say 5"),
    "another shape": (cut, r"o_proj\.weight: the adapter's product has the shape \(64, 63\)"),
    "no magnitudes": (forget_the_magnitudes, "use_dora is True, but the magnitudes say otherwise"),
}


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_an_adapter_that_does_not_fit_is_an_error(
    sharded: Path,
    plain: Path,
    tmp_path: Path,
    spoil: Callable[[Tensors, dict[str, Any]], None],
    message: str,
) -> None:
    tensors, settings = (
        load_file(plain / "adapter_model.safetensors"),
        json.loads((plain / "adapter_config.json").read_text()),
    )
    spoil(tensors, settings)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(StepError, match=message):
        merge(MergeAdapter(Model(describe(sharded), str(tmp_path), dtype="float32"), str(tmp_path / "merged")), ignore)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_base_whose_tensors_have_other_names_is_merged_in_memory_and_says_so(
    sharded: Path, plain: Path, tmp_path: Path, quantized: bool
) -> None:
    shutil.copytree(sharded, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    renamed = {name.removeprefix("model."): tensor for name, tensor in read(sharded).items()}
    save_file(renamed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    model = Model(describe(tmp_path / "base"), str(plain), quantized=quantized, dtype="float32")
    how = merge(MergeAdapter(model, str(tmp_path / "merged")), ignore)
    assert how.way.startswith("by peft in memory, because model.layers.0.")
    direct = streamed(replace(model, base=describe(sharded)), tmp_path / "direct")
    for name, tensor in read(tmp_path / "merged").items():
        assert torch.allclose(tensor, direct[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dequantised_tensor_is_the_one_that_training_computes_with(
    sharded: Path, plain: Path, dtype: Dtype, quantization: Literal["nf4", "fp4"], double: bool
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    model = Model(describe(sharded), None, True, dtype, quantization, double)
    plan = plan_merge(replace(model, adapter=str(plain)))
    layers = {f"{name}.weight": m for name, m in load_weights(model).named_modules() if hasattr(m, "quant_state")}
    assert plan.quantised.keys() == layers.keys()
    assert len(layers) == 14
    for name, layer in layers.items():
        ours = dequantised(plan.stored[name].read().to(plan.dtype), plan.quantised[name])
        theirs = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert ours.dtype == theirs.dtype == plan.dtype
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, plan.stored[name].read().to(plan.dtype))


def test_both_merges_of_qlora_are_scored_and_the_dequantised_one_is_what_was_trained(
    sharded: Path, plain: Path, tmp_path: Path
) -> None:
    rows = render(describe(sharded), tmp_path, pairs(4), pairs(8, start=100))
    model = Model(describe(sharded), str(plain), quantized=True, dtype="float32")
    how = merge_both(MergeBoth(model, str(tmp_path / "both"), str(rows / "heldout.jsonl"), 6), ignore)
    dequantised, original = how.candidates
    assert (how.way, how.dtype, dequantised.name, original.name) == ("streamed", "float32", "dequantised", "original")
    assert dequantised.kl < 1e-9
    assert original.kl > 1e-5
    assert dequantised.top1_agreement == 1.0
    assert dequantised.nll.tokens == original.nll.tokens > 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"dequantised", "original"}


def test_peft_s_merge_inside_four_bits_loses_the_adapter_and_has_no_way_in(sharded: Path, tmp_path: Path) -> None:
    small = adapter(sharded, tmp_path / "adapter", size=0.008)
    rows = render(describe(sharded), tmp_path, pairs(4), pairs(8, start=100))
    examples = read_examples(str(rows / "heldout.jsonl"))
    model = Model(describe(sharded), str(small), quantized=True, dtype="float32")
    with pytest.raises(AssertionError, match="rounds the adapter away"):
        merged_by_peft(load_weights(model), model)
    trained, base = with_adapter(load_weights(model), model), load_weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of rounding, and goes on
        inside = with_adapter(load_weights(model), model).merge_and_unload()
    before, after = (torch.cat([layer.weight.data.flatten() for layer in layers(each)]) for each in (base, inside))
    assert (before != after).float().mean() < 0.05
    with torch.inference_mode():
        erased, nothing = score("inside", trained, inside, examples).kl, score("base", trained, base, examples).kl
    streamed(model, tmp_path / "merged")
    with torch.inference_mode():
        ours = score("ours", trained, load_weights(replace(model, quantized=False), str(tmp_path / "merged")), examples)
    assert erased > 0.5 * nothing
    assert ours.kl < 1e-3 * erased


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "quant_state")]
