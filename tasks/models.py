"""Which weights a step loads, and which questions it asks them."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

from loragate.attempt import Attempt, FetchedBase, Rows
from loragate.rows import Message
from loragate.work import Model


def adapted(attempt: Attempt, base: FetchedBase, adapter: str | None) -> Model:
    """The base as training sees it (4-bit for QLoRA), with an adapter on top unless that is None."""
    train = attempt.config.train
    return Model(base.base, adapter, quantized=train.method == "qlora" and adapter is not None, dtype=train.dtype)


def merged_model(attempt: Attempt, base: FetchedBase, folder: str) -> Model:
    """Merged weights, with the base's tokenizer and stop tokens."""
    return Model(replace(base.base, path=folder), dtype=attempt.config.train.dtype)


def first_questions(rows: Rows, limit: int) -> tuple[tuple[Message, ...], ...]:
    """What was asked before the first answer of the first held-out rows."""
    with Path(rows.file("heldout.jsonl")).open(encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in islice(file, limit)]
    return tuple(_question(messages) for messages in conversations)


def first_references(rows: Rows, limit: int) -> tuple[str, ...]:
    """The first answers of the same rows."""
    with Path(rows.file("heldout.jsonl")).open(encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in islice(file, limit)]
    return tuple(messages[len(_question(messages))][1] for messages in conversations)


def _question(messages: list[list[str]]) -> tuple[Message, ...]:
    end = next(position for position, (role, _) in enumerate(messages) if role == "assistant")
    return tuple(Message(role, content) for role, content in messages[:end])
