"""The perplexity ladder: one model measured again after every step, on the same held-out rows.

base -> adapter -> merged -> GGUF f16 -> each quantisation. Each rung is held against the one that it was made from, so
a loss is put down to the step between them: training, merging, conversion or quantisation.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from loragate.comparison import Comparison
from loragate.perplexity import Nll
from loragate.rendering import Example

COMPARED_POSITIONS = 4096
"""Supervised positions over which whole predictions are compared; perplexities are of all rows."""
F16, ADAPTER = "f16", "adapter"
"""Names of GGUF files: the merged model in 16 bits, and the adapter alone."""
STEPS = {"tuned": "training", "merged": "merging", f"gguf_{F16}": "conversion", f"gguf_{ADAPTER}": "conversion"}
"""What lies between a rung and the one that it was made from; for every other one it is quantisation."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model's predictions are from another one's, position by position.

    Attributes:
        kl: Mean KL(above || this) in nats; NaN where no position was compared. Unlikely tokens are counted in groups,
            so it is a lower bound of the divergence over the whole vocabulary (Cover and Thomas 2006, section 2.8:
            processing adds no information).
        top1_agreement: Share of positions where both have the same likeliest token.
        positions: How many were compared.
    """

    kl: float
    top1_agreement: float
    positions: int


NOT_COMPARED = Divergence(math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class Rung:
    """One measurement on the perplexity ladder.

    Attributes:
        name: baseline, tuned, merged, or gguf_ and a quantisation or `adapter`.
        above: Name of the rung that it was made from; empty for the first.
        divergences: Its predictions held against those of other rungs, by their names.
    """

    name: str
    nll: Nll
    above: str = ""
    divergences: dict[str, Divergence] = field(default_factory=dict)

    @property
    def step(self) -> str:
        """What lies between this rung and the one that it was made from; empty for the first."""
        return STEPS.get(self.name, "quantisation") if self.above else ""

    @property
    def divergence(self) -> Divergence:
        """How far its predictions are from those of the rung that it was made from."""
        return self.divergences.get(self.above, NOT_COMPARED)


@dataclass(frozen=True, slots=True)
class Hop:
    """One step down the ladder: a rung held against the one that it was made from.

    Attributes:
        above, name: Names of both rungs.
        compared: Their perplexities, paired by row.
        divergence: How far predictions of the lower one are from those of the upper one.
    """

    above: str
    name: str
    compared: Comparison
    divergence: Divergence


def compared_rows(examples: Sequence[Example]) -> int:
    """How many of the first rows have their predictions compared: whole rows, at least one."""
    positions = 0
    for number, example in enumerate(examples):
        positions += example.supervised
        if positions > COMPARED_POSITIONS:
            return max(1, number)
    return len(examples)


def gguf_file(name: str) -> str:
    """Name of the GGUF file of a quantisation, or of the adapter alone."""
    return "adapter-f16.gguf" if name == ADAPTER else f"model-{name}.gguf"


def made_from(name: str, exported: Container[str]) -> str:
    """What a GGUF file was made from: the adapter as trained, the merged model, or f16 where that is exported."""
    if name == ADAPTER:
        return "tuned"
    return F16 if name != F16 and F16 in exported else "merged"
