"""Merging an adapter into weights, and holding the result against what was trained and against the base.

LoRA merges into the base as it is. QLoRA merges into the base as training saw it, quantised and de-quantised, or into
the base as it is; which of the two is nearer to what was trained is measured. Merging inside a quantised model is not
done at all: a de-quantised weight sits on the centre of its bin, so a difference smaller than half a bin rounds back,
and with it the adapter (peft#2321; 71 of 106 million 4-bit codes changed where that was measured).

Weights are streamed (`streamed_merge`); peft merges the whole model in memory where that cannot be done.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loragate.artifact_work import CompareMerged, MergeAdapter, MergeBoth, MergeEvidence
from loragate.child import Progress, Report, ignore
from loragate.engines.language_model import choose_dtype, load_tokenizer, load_weights, read_examples, with_adapter
from loragate.engines.merge_compare import compare_tensors, score, tied
from loragate.engines.streamed_merge import is_quantised, plan_merge, write_merged
from loragate.record import Merge, MergeCandidate
from loragate.work import Base, Model

STREAMED = "streamed"
COPIED = (
    *("generation_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*"),
    *("merges.txt", "chat_template.*", "chat_templates/*", "*.model", "*.tiktoken"),
)
"""Files of a base that its merged model has, too, besides its configuration and its weights."""


def merge(request: MergeAdapter, report: Report) -> Merge:
    """Merge into what the adapter was trained on, and save a folder that transformers loads without peft.

    Raises:
        StepError: The adapter does not fit the base, or a merged tensor is not finite.
    """
    plan, folder = plan_merge(request.model), Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.obstacle:
        _merge_in_memory(request.model, folder, report)
    else:
        write_merged(plan, folder, report)
        _copy_settings(request.model, folder)
    dtype = str(plan.dtype).removeprefix("torch.")
    way = f"by peft in memory, because {plan.obstacle}" if plan.obstacle else STREAMED
    return Merge("dequantised" if request.model.quantized else "original", dtype, way)


@torch.inference_mode()
def merge_both(request: MergeBoth, report: Report) -> Merge:
    """Merge a QLoRA adapter into both bases, each in a folder of its name, and score both; nothing is chosen yet."""
    examples = read_examples(request.examples)[: request.rows]
    made: dict[str, Merge] = {}
    for name, model in _bases(request.model).items():
        made[name] = merge(MergeAdapter(model, str(Path(request.folder) / name)), ignore)
        report(Progress(len(made), 4, "merges and scores"))
    trained = with_adapter(load_weights(request.model), request.model)
    candidates: list[MergeCandidate] = []
    for name in made:
        candidate = load_weights(_plain(request.model), str(Path(request.folder) / name))
        candidates.append(score(name, trained, candidate, examples))
        report(Progress(len(made) + len(candidates), 4, "merges and scores"))
    ways = dict.fromkeys(each.way for each in made.values())
    return Merge("", made["dequantised"].dtype, "; ".join(ways), tuple(candidates))


def _bases(model: Model) -> dict[str, Model]:
    return {"dequantised": model, "original": replace(model, quantized=False)}


def _plain(model: Model) -> Model:
    return replace(model, adapter=None, quantized=False)


def _merge_in_memory(model: Model, folder: Path, report: Report) -> None:
    """Load the whole model, never quantised, and let peft merge and save it."""
    weights = load_weights(model)
    if model.quantized:
        weights = weights.dequantize()
        weights = weights.to(weights.get_input_embeddings().weight.dtype)
    report(Progress(1, 3, "steps"))
    merged = merged_by_peft(weights, model)
    report(Progress(2, 3, "steps"))
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(merged.config, leftover):
            delattr(merged.config, leftover)
    merged.save_pretrained(folder)
    load_tokenizer(model.base).save_pretrained(folder)
    generation = Path(model.base.path) / "generation_config.json"
    if generation.exists():
        shutil.copy(generation, folder)
    report(Progress(3, 3, "steps"))


def merged_by_peft(weights: Any, model: Model) -> Any:
    """Let peft merge an adapter into weights of 16 or 32 bits, refusing NaN."""
    assert not any(map(is_quantised, weights.modules())), "a merge inside quantised weights rounds the adapter away"
    return with_adapter(weights, model).merge_and_unload(safe_merge=True)


def _copy_settings(model: Model, folder: Path) -> None:
    """Copy what stands beside the weights; the configuration says the merged weights' number format."""
    base, dtype = Path(model.base.path), str(choose_dtype(model.dtype)).removeprefix("torch.")
    patterns = (*COPIED, *(["*.py"] if model.base.trust_remote_code else []))
    for path in sorted({path for pattern in patterns for path in base.glob(pattern) if path.is_file()}):
        (folder / path.relative_to(base)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(base))
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    _set_dtype(settings, dtype)
    (folder / "config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _set_dtype(settings: dict[str, Any], dtype: str) -> None:
    """Name the number format under the key that is there already, also in the parts of a model of several."""
    old = "torch_dtype" in settings
    settings["torch_dtype" if old else "dtype"] = dtype
    for part in settings.values():
        if isinstance(part, dict) and part.keys() & {"dtype", "torch_dtype"}:
            _set_dtype(part, dtype)


def compare(request: CompareMerged, report: Report) -> MergeEvidence:
    """Compare the tensors of merged weights with the base's; what both predict is on the ladder."""
    adapted = with_adapter(load_weights(request.model), request.model)
    merged_model = load_weights(_plain(request.model), request.merged)
    report(Progress(1, 2, "models"))
    inner = adapted.get_base_model()
    modules = {name for name, module in inner.named_modules() if hasattr(module, "lora_B")}
    quantized = {name.removesuffix(".base_layer") for name, module in inner.named_modules() if is_quantised(module)}
    report(Progress(2, 2, "models"))
    return MergeEvidence(
        same_ties=tied(inner) == tied(merged_model),
        other_tokenizer=_other_tokenizer(request.model.base, request.merged),
        dtype=str(merged_model.dtype).removeprefix("torch."),
        **compare_tensors(Path(request.model.base.path), Path(request.merged), modules, quantized),
    )


def _other_tokenizer(base: Base, merged: str) -> tuple[str, ...]:
    """What of a tokenizer differs: its template, its vocabulary, its control tokens."""
    ours, theirs = load_tokenizer(base), load_tokenizer(replace(base, path=merged))
    parts = {
        "chat template": (ours.chat_template, theirs.chat_template),
        "vocabulary": (ours.get_vocab(), theirs.get_vocab()),
        "control tokens": (ours.special_tokens_map, theirs.special_tokens_map),
    }
    return tuple(name for name, (one, other) in parts.items() if one != other)
