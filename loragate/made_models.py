"""The models that an attempt made (adapter, merged weights, every GGUF file), each with the numbers that it has."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from loragate.files import Side
from loragate.ladder import Rung
from loragate.notes import base_name
from loragate.record import GENERAL, AttemptRecord

BASELINE = "baseline"
LADDER = "ladder/"
"""What the names of numbers begin with that every rung of the ladder has; the rung's place is their step."""
RUNGS: Mapping[str, str] = {"adapter": "tuned"}
"""Artifacts whose rung on the ladder has another name."""

Kind = Literal["adapter", "merged", "gguf"]


@dataclass(frozen=True, slots=True)
class Number:
    """One finite number about a model, measured on the rows of one side."""

    name: str
    value: float
    step: int
    side: Side


@dataclass(frozen=True, slots=True)
class MadeModel:
    """A model that an attempt made.

    Attributes:
        name: Of the artifact: adapter, merged, or gguf_ and a quantisation.
        place: Where its files are below the version's folder; empty where they are not uploaded.
    """

    name: str
    kind: Kind
    digest: str
    place: str
    params: dict[str, str]
    numbers: tuple[Number, ...]


def made_models(record: AttemptRecord) -> tuple[MadeModel, ...]:
    """Every model of an attempt, in the order in which they were made."""
    return tuple(
        MadeModel(
            name, kind, ref.digest, _place(kind, ref.path), dict(_params(record, kind, name)), _numbers(record, name)
        )
        for name, ref in record.artifacts.items()
        if (kind := _kind(name))
    )


def baseline_numbers(record: AttemptRecord) -> tuple[Number, ...]:
    """The first rung of the ladder, which is of no model that was made."""
    return tuple(number for rung in record.ladder if rung.name == BASELINE for number in _rung(record, rung, 0))


def _kind(name: str) -> Kind | None:
    kinds: dict[str, Kind] = {"adapter": "adapter", "merged": "merged", "gguf": "gguf"}
    return kinds.get(name.partition("_")[0])


def _place(kind: Kind, path: str) -> str:
    return {"adapter": "adapter", "merged": "", "gguf": f"gguf/{PurePath(path).name}"}[kind]


def _params(record: AttemptRecord, kind: Kind, name: str) -> Iterator[tuple[str, str]]:
    """What tells it from other models: base, how it was trained, and its number format."""
    train = record.opened.config.get("train")
    yield "base_model", base_name(record)
    if isinstance(train, dict):
        yield from ((each, str(train[each])) for each in ("method", "r", "alpha", "epochs") if each in train)
    if kind == "gguf":
        yield "quantisation", name.removeprefix("gguf_")
    elif kind == "merged" and record.merge:
        yield from (("dtype", record.merge.dtype), ("merge", record.merge.chosen))


def _numbers(record: AttemptRecord, name: str) -> tuple[Number, ...]:
    wanted = RUNGS.get(name, name)
    ladder = [n for step, rung in enumerate(record.ladder) if rung.name == wanted for n in _rung(record, rung, step)]
    if name == "adapter":
        ladder += _general(record)
    return tuple(ladder)


def _rung(record: AttemptRecord, rung: Rung, step: int) -> Iterator[Number]:
    """A rung's perplexity; and how it stands to the rung that it was made from."""
    found = {"perplexity": rung.nll.perplexity, **_against(record, rung.name)}
    if rung.divergence.positions:
        found |= {"kl": rung.divergence.kl, "top1_agreement": rung.divergence.top1_agreement}
    yield from (Number(LADDER + name, value, step, "heldout") for name, value in found.items() if math.isfinite(value))


def _against(record: AttemptRecord, name: str) -> dict[str, float]:
    """The ratio of perplexities and its interval; nothing where there was nothing to compare."""
    held = record.comparisons.get(name)
    known = held is not None and math.isfinite(held.ratio)
    return {"ratio": held.ratio, "ratio_low": held.low, "ratio_high": held.high} if known and held else {}


def _general(record: AttemptRecord) -> Iterator[Number]:
    perplexities = {rung.name: rung.nll.perplexity for rung in record.general}
    found = {"perplexity": perplexities.get(f"{GENERAL}tuned", math.nan), **_against(record, "general")}
    yield from (Number(f"general/{name}", value, 0, "general") for name, value in found.items() if math.isfinite(value))
