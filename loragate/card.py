"""What a person says about a model, which no step of the road can find out: the run file's section `card`.

It stands in the release's model card, technical file and bill of materials. What is left out is named there as not
stated; what is required and left out refuses, before anything is trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from loragate.errors import NotApplicableError
from loragate.limits import Section

ByRoad = Literal["method", "run", "evaluation", "artifacts", "waivers", "rollback"]
"""Items of a card that the road fills by itself."""
Item = Literal[
    "base_model",
    "base_licence",
    "licence",
    "language",
    "data_description",
    "data_licence",
    "intended_use",
    "out_of_scope",
    "limits",
    "human_oversight",
    "contact",
    "method",
    "run",
    "evaluation",
    "artifacts",
    "waivers",
    "rollback",
]
BY_ROAD: tuple[ByRoad, ...] = get_args(ByRoad)
KNOWN_ELSEWHERE = ("base_model", "base_licence", "licence", "language")
"""Items that the base model or another section of the run file may say."""


@dataclass(frozen=True, slots=True)
class BaseCard:
    """What the base model says about itself.

    Attributes:
        licence: From the front matter of its README.md; empty where there is none.
        hub: Whether it was downloaded from a hub, so that its source is its public name.
    """

    licence: str = ""
    hub: bool = False


class Card(Section):
    """What stands in the release's model card and technical file beside what is on record; null: not stated."""

    base_model: str | None = None
    """Public name of the base model, e.g. its hub id; null: base_model.source where that is a hub id."""
    base_licence: str | None = None
    """Licence of the base model as SPDX id, e.g. apache-2.0; null: what the base's README.md says."""
    licence: str | None = None
    """Licence of what is released as SPDX id; null: the base model's, which the merged weights are bound by."""
    language: Annotated[str, Field(pattern="^[a-z]{2,3}$")] | None = None
    """Language that the model answers in as ISO 639-1 code; null: data.language."""
    data_description: str | None = None
    """What the rows are: where they come from, how they were chosen and written, what is in them about persons."""
    data_licence: str | None = None
    """Licence of the rows, or by what right they are used."""
    intended_use: str | None = None
    """What the model is for, and for whom."""
    out_of_scope: str | None = None
    """What it must not be used for."""
    limits: str | None = None
    """What it is known to do badly, and the risks of that."""
    human_oversight: str | None = None
    """Who looks at its answers, and how they can step in (Regulation (EU) 2024/1689, Article 14)."""
    contact: str | None = None
    """Who provides the model and where they are reached."""
    required: tuple[Item, ...] = ()
    """Items that must not be empty: keys of this section; the card gate refuses otherwise, before training. What the
    road fills itself (method, run, evaluation, artifacts, waivers, rollback) may be named, too."""


def emptied(card: Card) -> Card:
    """The section with all that is stated taken out, as a defect.

    Raises:
        NotApplicableError: Nothing is required that the run file alone can say.
    """
    if not any(getattr(card, item) for item in card.required if item not in (*BY_ROAD, *KNOWN_ELSEWHERE)):
        raise NotApplicableError("card.required names nothing that only the run file can say")
    return Card(required=card.required)


def stated(card: Card, base: BaseCard | None, source: str, language: str | None) -> dict[str, str]:
    """What is known of every item that a person can state, by its key; empty where nothing is.

    Args:
        card: The run file's section.
        base: What the base model says about itself; None where that is not on record.
        source: The run file's base_model.source.
        language: The run file's data.language.
    """
    said = {item: str(getattr(card, item) or "").strip() for item in get_args(Item) if item not in BY_ROAD}
    found = base or BaseCard()
    base_licence = said["base_licence"] or found.licence
    known: Mapping[str, str] = {
        "base_model": said["base_model"] or (source if found.hub else ""),
        "base_licence": base_licence,
        "licence": said["licence"] or base_licence,
        "language": said["language"] or (language or ""),
    }
    return said | dict(known)
