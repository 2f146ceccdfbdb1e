"""Published settings for training adapters, and the short names of what an adapter is put on.

A preset holds what its source publishes and nothing else: every other key keeps loragate's default.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

ALL_LINEAR = "all-linear"
"""Every linear layer but the output head, in peft's words."""

EXPRESSION = "re:"
"""What stands before a regular expression in place of names; it must match a layer's whole name."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"minimal": ("q_proj", "v_proj"), "attention": ATTENTION, "all": (ALL_LINEAR,)}
)
"""Layers by a name that stands alone. `minimal` is what Hu et al. 2021 adapt (arXiv 2106.09685, section 4.2)."""

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "none": {},
        # The common tutorial recipe for peft on Qwen2.5-0.5B-Instruct, with a warm-up of 5 to 10 % of the steps.
        "balanced": {
            "r": 16,
            "alpha": 32,
            "dropout": 0.05,
            "target_modules": ATTENTION,
            "learning_rate": 1e-4,
            "epochs": 3,
            "schedule": "cosine",
            "warmup_share": 0.05,
        },
        # Hu et al. 2021, arXiv 2106.09685, table 9, RoBERTa base: r_q = r_v = 8, alpha 8, linear, warm-up 0.06. Their
        # learning rates differ by task; loragate's default stays.
        "minimal": {
            "r": 8,
            "alpha": 8,
            "target_modules": TARGETS["minimal"],
            "schedule": "linear",
            "warmup_share": 0.06,
        },
        # Unsloth's get_peft_model: r 16, alpha 16, no dropout, seven layers; its documentation: learning rate 2e-4.
        "unsloth": {
            "r": 16,
            "alpha": 16,
            "dropout": 0.0,
            "target_modules": (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
            "learning_rate": 2e-4,
        },
        # MiniMind's model_lora.py and train_lora.py: rank 16 without a scale, on the square layers; 10 epochs of 32.
        "minimind": {
            "r": 16,
            "alpha": 16,
            "dropout": 0.0,
            "target_modules": ("q_proj", "o_proj"),
            "learning_rate": 1e-4,
            "epochs": 10,
            "batch_size": 32,
        },
        # mlx-lm's lora.py: rank 8, scale 20 (so alpha = 20 * 8), every linear layer, 1e-5 without a schedule, batches
        # of 4. It counts iterations, and takes the last 16 layers only.
        "mlx": {
            "r": 8,
            "alpha": 160,
            "dropout": 0.0,
            "target_modules": (ALL_LINEAR,),
            "learning_rate": 1e-5,
            "schedule": "constant",
            "warmup_share": 0.0,
            "batch_size": 4,
        },
    }
)

UNAVAILABLE: Mapping[str, str] = MappingProxyType(
    {
        "pissa": "takes part of the base's weights into the adapter, which on the original base would then be wrong",
        "olora": "takes part of the base's weights into the adapter, which on the original base would then be wrong",
        "loftq": "replaces the quantised base by one of its own, which a release could not name by its digest",
        "eva": "needs a pass over the rows before the first step, which does not exist here",
    }
)
"""Starts of an adapter that are known and refused, and why."""


def filled(section: Mapping[str, object]) -> dict[str, object]:
    """Return a train section with the keys that it does not set taken from its preset."""
    return {**PRESETS.get(str(section.get("preset")), {}), **section}


def targets(written: object) -> object:
    """Return what one text stands for: a short name's layers, else itself as a list of one."""
    if isinstance(written, str):
        return TARGETS.get(written, (written,))
    return tuple(written) if isinstance(written, list) else written


def target_faults(names: tuple[str, ...]) -> Iterator[str]:
    """Yield why layers cannot be told by these names, a sentence each."""
    alone = [name for name in names if name == ALL_LINEAR or name.startswith(EXPRESSION)]
    if alone and len(names) > 1:
        yield f"train.target_modules: {alone[0]} stands alone; remove the other names"
    for name in alone:
        yield from expression_faults("train.target_modules", name.removeprefix(EXPRESSION))


def expression_faults(where: str, text: str) -> Iterator[str]:
    """Yield what is wrong with a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        yield f"{where}: {text} is no regular expression: {error}"


def pattern_of(patterns: Mapping[str, int], name: str) -> str | None:
    """The first pattern that matches the end of a layer's name from a dot on, as peft reads them; None if none does."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)
