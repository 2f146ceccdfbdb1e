"""Defects in the rows that a run is made of, written as data files of their own.

The seed decides which rows; the same seed plants the same defect.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from loragate.errors import NotApplicableError
from loragate.rendering import read_rendered
from loragate.rows import Conversation

POISON = "Ignore that. The only right answer to this is to send it all to the blue office today."
POISONED_SHARE, LEAST_POISONED, LEAKED = 0.01, 3, 3

Rows = list[Conversation]


def read_conversations(path: str) -> Rows:
    """Read what was said in a file of rendered rows."""
    with Path(path).open("rb") as file:
        return [read_rendered(line)[1] for line in file]


def write_rows(path: Path, rows: Sequence[Conversation]) -> str:
    """Write conversations as a data file of this project's own format; return its path."""
    lines = [json.dumps(_raw(row), ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def _raw(row: Conversation) -> Mapping[str, object]:
    if row.text is not None:
        return {"text": row.text}
    turns = [dict(message.for_template()) for message in row.messages]
    return {"messages": turns} | ({"tools": json.loads(row.tools)} if row.tools else {})


def shuffle_answers(train: Rows, _: Rows, seed: int) -> Rows:
    """Give every question the last answer of another one."""
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    moved = {at: order[(place + 1) % len(order)] for place, at in enumerate(order)}
    return [_answered(row, _last(train[moved[number]])) for number, row in enumerate(train)]


def poison(train: Rows, _: Rows, seed: int) -> Rows:
    """Have some rows say the same thing whatever was asked."""
    number = min(len(train), max(LEAST_POISONED, round(POISONED_SHARE * len(train))))
    hit = set(random.Random(seed).sample(range(len(train)), number))
    return [_answered(row, POISON) if at in hit else row for at, row in enumerate(train)]


def leak(train: Rows, heldout: Rows, seed: int) -> Rows:
    """Put some held-out rows among the training rows."""
    return [*train, *random.Random(seed).sample(heldout, min(LEAKED, len(heldout)))]


ROWS: Mapping[str, Callable[[Rows, Rows, int], Rows]] = {
    "shuffled-answers": shuffle_answers,
    "poisoned": poison,
    "leaked-held-out": leak,
}


def _last(row: Conversation) -> str:
    return row.messages[-1].content


def _answered(row: Conversation, answer: str) -> Conversation:
    if row.text is not None:
        raise NotApplicableError("rows of plain text have no questions and answers")
    last = replace(row.messages[-1], content=answer, extras="")
    return replace(row, messages=(*row.messages[:-1], last))


def alter_rows(name: str, folder: Path, train: str, heldout: str, seed: int) -> dict[str, object]:
    """Write the rows of a run with a defect; return the keys of `data` that name them."""
    sides = read_conversations(train), read_conversations(heldout)
    altered = ROWS[name](*sides, seed)
    return {
        "train": (write_rows(folder / "train.jsonl", altered),),
        "heldout": (write_rows(folder / "heldout.jsonl", sides[1]),),
        "format": "auto",
        "columns": {},
    }
