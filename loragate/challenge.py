"""What a challenger is judged by on the held-out rows, beside the comparison with the base: champion, slices, wear."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loragate.comparison import Comparison
from loragate.record import AttemptRecord
from loragate.wear import Look, Wear

CHAMPION: Final = "champion"
GENERAL: Final = "general"
Side = Literal["baseline", "champion"]
"""What a tuned model is compared with."""


@dataclass(frozen=True, slots=True)
class Against:
    """The champion that a challenger is held against.

    Attributes:
        release: Its name; empty where the model has none.
        own: Name of the release whose weights the challenger's are: it is then held against the champion before that,
            as it was when that was released. Empty for a challenger of its own.
        problem: Why the two cannot be compared, and what to do; empty where they can.
        compared: Champion's weights before, challenger's after; None without a champion, or with a problem.
    """

    release: str = ""
    own: str = ""
    problem: str = ""
    compared: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Sliced:
    """A comparison on the held-out rows of one slice.

    Attributes:
        name: The slice, as the data files call it.
        against: What the tuned model was compared with.
    """

    name: str
    against: Side
    compared: Comparison

    @property
    def rule(self) -> str:
        """Name of the comparison on record, and of the rule about it."""
        return comparison_name(self.name, self.against)


@dataclass(frozen=True, slots=True)
class Challenge:
    """All of it.

    Attributes:
        slices: Number of slices among the held-out rows.
        sliced: Their comparisons; none where there are more slices than may be.
        wear: How worn the held-out rows are; None where nobody keeps count: alpha is then not divided.
    """

    against: Against = Against()
    slices: int = 0
    sliced: tuple[Sliced, ...] = ()
    wear: Wear | None = None


def comparison_name(slice_name: str, against: str) -> str:
    """Name on record of a slice's comparison; no two are alike, whatever a slice is called."""
    return f"{CHAMPION}/slice/{slice_name}" if against == CHAMPION else f"slice/{slice_name}"


def models_of(name: str, over: str = "/") -> str:
    """Say which models a comparison on record is about, one over the other, and on which rows."""
    if name == CHAMPION:
        return f"tuned {over} champion"
    if name == GENERAL:
        return f"tuned {over} baseline on general rows"
    before, found, slice_name = name.partition("slice/")
    if not found:
        return f"{name} {over} baseline"
    return f"tuned {over} {before.rstrip('/') or 'baseline'} on the slice {slice_name}"


def champions(records: Sequence[AttemptRecord], model: str) -> list[AttemptRecord]:
    """Releases of a model that were ever made champion, newest first: the first is the champion."""
    found = [record for record in reversed(records) if record.opened.model == model and record.closed is not None]
    return [record for record in found if record.closed is not None and CHAMPION in record.closed.aliases]


def looks(records: Sequence[AttemptRecord], model: str) -> list[tuple[str, Look]]:
    """Looks of a model's challengers at held-out rows, oldest first, with the time of their attempts."""
    mine = [record for record in records if record.opened.model == model]
    return [(record.opened.started, record.look) for record in mine if record.look is not None]
