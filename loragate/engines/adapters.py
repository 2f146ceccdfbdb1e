"""Adapters: made on a base, counted, saved so that equal weights are equal bytes, and read back."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from loragate.child import Progress, Report
from loragate.config import Train
from loragate.engines.language_model import load_weights
from loragate.errors import ConfigError
from loragate.store import write_atomically
from loragate.work import AdapterEvidence, Base, Model


def adapted_model(base: Base, settings: Train) -> Any:
    """The base with a fresh adapter: A random by the seed, B zero, base frozen; in training mode.

    Raises:
        ConfigError: A target module is not in the model.
    """
    weights = Model(base, quantized=settings.method == "qlora", dtype=settings.dtype)
    torch.manual_seed(settings.seed)
    random.seed(settings.seed)
    modules = list(settings.target_modules)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
    )
    try:
        model = get_peft_model(load_weights(weights), config)
    except ValueError as error:
        raise ConfigError(f"train.target_modules {modules}: {str(error).splitlines()[0]}") from None
    return model.train()


def lora_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the adapted modules by name."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_B"))


def predicted_trainable(model: Any, r: int) -> int:
    """r * (in + out) summed over the adapted modules (Hu et al. 2021, arXiv 2106.09685, section 4.2)."""
    return sum(r * (module.in_features + module.out_features) for _, module in lora_modules(model))


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter so that the same weights are the same bytes wherever and whenever they are saved."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in get_peft_model_state_dict(model).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = ""  # a path of this machine; the record names the base by its digest
    config["inference_mode"] = True
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    write_atomically(folder / "adapter_config.json", json.dumps(settings, indent=1, sort_keys=True, default=str))


def inspect_adapter(folder: str, report: Report) -> AdapterEvidence:
    """Read a saved adapter's weights back from disk."""
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    report(Progress(1, 1, "adapter"))
    return AdapterEvidence(
        parameters=sum(t.numel() for t in tensors.values()),
        zero_modules=tuple(name for name, t in tensors.items() if ".lora_B." in name and not bool(t.any())),
        not_finite=tuple(name for name, t in tensors.items() if not bool(t.isfinite().all())),
    )
