"""Which weights a step loads, and which questions it asks them."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

from loragate.attempt import Attempt, FetchedBase, Rows
from loragate.rows import Conversation, from_fields
from loragate.work import Model

PASSES = tuple(
    f"loragate.engines.{name}"
    for name in ("attention", "cuda_kernels", "fused", "heads", "language_model", "noise", "packing")
)
"""Modules that decide how rows go through a model."""
LIBRARIES = ("torch", "transformers", "peft")
"""Distributions that do so."""


def adapted(attempt: Attempt, base: FetchedBase, adapter: str | None) -> Model:
    """The base as training sees it (quantised for QLoRA), with an adapter on top unless that is None."""
    train = attempt.config.train
    return Model(
        base.base,
        adapter,
        quantized=train.method == "qlora" and adapter is not None,
        dtype=train.dtype,
        quantization=train.quantization,
        double_quantization=train.double_quantization,
    )


def weight_format(model: Model) -> dict[str, object]:
    """In which numbers a model's weights are loaded, as a recipe's settings."""
    return {
        "quantized": [model.quantization, model.double_quantization] if model.quantized else False,
        "dtype": model.dtype,
    }


def merged_model(attempt: Attempt, base: FetchedBase, folder: str) -> Model:
    """Merged weights, with the base's tokenizer and stop tokens."""
    return Model(replace(base.base, path=folder), dtype=attempt.config.train.dtype)


def first_questions(rows: Rows, limit: int) -> tuple[Conversation, ...]:
    """What was asked before the first answer of the first held-out rows."""
    return tuple(conversation.question for conversation in _first_heldout(rows, limit))


def first_references(rows: Rows, limit: int) -> tuple[str, ...]:
    """The first answers of the same rows."""
    return tuple(conversation.answer for conversation in _first_heldout(rows, limit))


def _first_heldout(rows: Rows, limit: int) -> list[Conversation]:
    with Path(rows.file("heldout.jsonl")).open(encoding="utf-8") as file:
        return [from_fields(json.loads(line)) for line in islice(file, limit)]
