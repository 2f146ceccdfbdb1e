"""Merging an adapter into weights, and holding the result against what was trained and against the base.

LoRA merges into the base as it is. QLoRA merges into the de-quantised 4-bit base: that is what was trained and
measured. (Merging inside 4-bit rounds the adapter away: peft#2321.)
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from loragate.child import Progress, Report
from loragate.engines.language_model import (
    by_length,
    load_tokenizer,
    load_weights,
    padded,
    read_examples,
    supervised_logits,
    with_adapter,
)
from loragate.rendering import Example
from loragate.work import CompareMerged, MergeAdapter, MergeEvidence, Model

STEPS = ("load", "merge", "save")


def merge(request: MergeAdapter, report: Report) -> dict[str, str]:
    """Merge, refusing NaN, and save a folder that transformers loads without peft."""
    weights = load_weights(request.model)
    if request.model.quantized:
        weights = weights.dequantize()
        weights = weights.to(weights.get_input_embeddings().weight.dtype)
    report(Progress(1, len(STEPS), STEPS[0]))
    merged: Any = with_adapter(weights, request.model).merge_and_unload(safe_merge=True)
    report(Progress(2, len(STEPS), STEPS[1]))
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(merged.config, leftover):
            delattr(merged.config, leftover)
    merged.save_pretrained(request.folder)
    load_tokenizer(request.model.base).save_pretrained(request.folder)
    generation = Path(request.model.base.path) / "generation_config.json"
    if generation.exists():
        shutil.copy(generation, request.folder)
    report(Progress(3, len(STEPS), STEPS[2]))
    return {"dtype": str(merged.dtype).removeprefix("torch.")}


@torch.inference_mode()
def compare(request: CompareMerged, report: Report) -> MergeEvidence:
    """Compare predictions position by position, and tensors one by one."""
    examples = read_examples(request.examples)[: request.rows]
    adapted = with_adapter(load_weights(request.model), request.model)
    modules = [name for name, module in adapted.get_base_model().named_modules() if hasattr(module, "lora_B")]
    quantized = [name for name, module in adapted.get_base_model().named_modules() if hasattr(module, "quant_state")]
    trained = list(_log_probabilities(adapted, examples))
    with adapted.disable_adapter():
        base = list(_log_probabilities(adapted, examples))
    report(Progress(1, 2, "models"))
    merged_model = load_weights(Model(request.model.base, dtype=request.model.dtype), request.merged)
    merged = list(_log_probabilities(merged_model, examples))
    report(Progress(2, 2, "models"))
    tensors = _compare_tensors(Path(request.model.base.path), Path(request.merged), set(modules), set(quantized))
    return MergeEvidence(
        kl_adapter=_mean_kl(trained, merged),
        kl_base=_mean_kl(merged, base),
        top1_agreement=_agreement(trained, merged),
        positions=sum(len(block) for block in merged),
        same_ties=_tied(adapted.get_base_model()) == _tied(merged_model),
        dtype=str(merged_model.dtype).removeprefix("torch."),
        **tensors,
    )


def _log_probabilities(model: Any, examples: list[Example]) -> Iterator[torch.Tensor]:
    """Yield log p over the vocabulary at each supervised position, batch by batch: [N, V], float32."""
    for numbers in by_length(examples, 1024):
        logits_NV = supervised_logits(model, *padded([examples[i] for i in numbers]))
        yield torch.log_softmax(logits_NV.float(), dim=-1)


def _mean_kl(from_blocks: list[torch.Tensor], to_blocks: list[torch.Tensor]) -> float:
    """Mean over positions of KL(p || q) = sum over v of p(v) (ln p(v) - ln q(v)), in nats."""
    pairs = list(zip(from_blocks, to_blocks, strict=True))
    positions = sum(len(p_NV) for p_NV, _ in pairs)
    sums = [(p_NV.exp() * (p_NV - q_NV)).sum(dtype=torch.float64).item() for p_NV, q_NV in pairs]
    return sum(sums) / positions


def _agreement(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    same = sum(int((a_NV.argmax(-1) == b_NV.argmax(-1)).sum()) for a_NV, b_NV in zip(first, second, strict=True))
    return same / sum(len(a_NV) for a_NV in first)


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def _tensors(folder: Path) -> dict[str, Path]:
    """Name every tensor of a model folder and the file it is in."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _compare_tensors(base: Path, merged: Path, modules: set[str], quantized: set[str]) -> dict[str, tuple[str, ...]]:
    """Compare tensors of two folders one at a time, so that memory holds two of them."""
    ours, theirs = _tensors(base), _tensors(merged)
    unchanged, altered = [], []
    missing = sorted(set(ours) ^ set(theirs))
    for name in sorted(set(ours) & set(theirs)):
        a, b = _tensor(ours[name], name), _tensor(theirs[name], name)
        module = name.removesuffix(".weight")
        if a.shape != b.shape:
            missing.append(name)
        elif torch.equal(a.to(b.dtype), b):
            unchanged += [name] if module in modules else []
        elif module not in modules | quantized:
            altered.append(name)
    return {"unchanged": tuple(unchanged), "altered": tuple(altered), "missing": tuple(missing)}


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
