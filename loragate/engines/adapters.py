"""Adapters: made on a base, counted, saved so that equal weights are equal bytes, and read back."""

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from loragate.child import Progress, Report
from loragate.config import Train
from loragate.engines.language_model import load_weights
from loragate.errors import ConfigError, first_line
from loragate.presets import ALL_LINEAR, EXPRESSION, pattern_of
from loragate.store import write_atomically
from loragate.work import ADAPTER_SETTINGS, AdapterEvidence, Base, Model

ADAPTER = "default"
"""The name that peft gives to a model's only adapter."""


def adapted_model(base: Base, settings: Train) -> Any:
    """The base with a fresh adapter: A random by the seed, B zero, base frozen; in training mode.

    Raises:
        ConfigError: A target module is not in the model, or a pattern fits none that is adapted.
    """
    weights = Model(
        base,
        quantized=settings.method == "qlora",
        dtype=settings.dtype,
        quantization=settings.quantization,
        double_quantization=settings.double_quantization,
    )
    torch.manual_seed(settings.seed)
    random.seed(settings.seed)
    return put_adapter(load_weights(weights), settings).train()


def put_adapter(weights: Any, settings: Train) -> Any:
    """Put a fresh adapter on loaded weights, of whatever device.

    Raises:
        ConfigError: A target module is not in the model, or a pattern fits none that is adapted.
    """
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a pattern that fits nothing: below
        try:
            model = get_peft_model(weights, lora_config(settings))
        except ValueError as error:
            raise ConfigError(f"train.target_modules {list(settings.target_modules)}: {first_line(error)}") from None
    names = [_name(name) for name, _ in lora_modules(model)]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(settings, key):
            if not any(pattern_of({pattern: 0}, name) for name in names):
                raise ConfigError(f"train.{key}: {pattern} fits no adapted module; they are like {names[0]}")
    return model


def lora_config(settings: Train) -> LoraConfig:
    """The adapter's settings in peft's words."""
    modules = list(settings.target_modules)
    special = modules[0] if modules[0] == ALL_LINEAR or modules[0].startswith(EXPRESSION) else None
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        init_lora_weights=True if settings.init == "default" else settings.init,
        target_modules=special.removeprefix(EXPRESSION) if special else modules,
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=dict(settings.alpha_pattern),
    )


def _name(name: str) -> str:
    """A module's name in the base model."""
    return name.removeprefix("base_model.model.")


def lora_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the adapted modules by name."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_B"))


def predicted_trainable(model: Any, r: int) -> int:
    """Count what is to be trained, from the sizes of the adapted modules and not from the adapter.

    r * (in + out) of each module (Hu et al. 2021, arXiv 2106.09685, section 4.2), with the rank that the adapter's
    rank_pattern gives it, and out more for DoRA's magnitudes (Liu et al. 2024, arXiv 2402.09353, section 4).
    """
    config = model.peft_config[ADAPTER]
    count = 0
    for name, module in lora_modules(model):
        pattern = pattern_of(config.rank_pattern, _name(name))
        rank = r if pattern is None else config.rank_pattern[pattern]
        count += rank * (module.in_features + module.out_features)
        count += module.out_features if config.use_dora else 0
    return count


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter so that the same weights are the same bytes wherever and whenever they are saved."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in get_peft_model_state_dict(model).items()}
    weights = folder / "adapter_model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library leaves it readable to its owner alone, wherever it is copied to
    config = model.peft_config[ADAPTER].to_dict()
    config["base_model_name_or_path"] = ""  # a path of this machine; the record names the base by its digest
    config["inference_mode"] = True
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    write_atomically(folder / "adapter_config.json", json.dumps(settings, indent=1, sort_keys=True, default=str))


def inspect_adapter(folder: str, report: Report) -> AdapterEvidence:
    """Read a saved adapter's weights back from disk."""
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    settings = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    report(Progress(1, 1, "adapter"))
    return AdapterEvidence(
        parameters=sum(t.numel() for t in tensors.values()),
        zero_modules=tuple(name for name, t in tensors.items() if ".lora_B." in name and not bool(t.any())),
        not_finite=tuple(name for name, t in tensors.items() if not bool(t.isfinite().all())),
        settings={name: settings.get(name) for name in ADAPTER_SETTINGS},
    )
