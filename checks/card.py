"""The card gate: whether the run file says what the release's card must say, before anything is trained."""

from collections.abc import Mapping, Sequence

from loragate.card import BY_ROAD
from loragate.verdicts import Finding, Verdict, conclude

ELSEWHERE = {
    "base_model": ", or take the base model from a hub",
    "base_licence": "; the base model's README.md says none",
    "licence": " or card.base_licence; the base model's README.md says none, either",
    "language": " or data.language",
}
"""What else would have filled an item."""


def judge(required: Sequence[str], known: Mapping[str, str]) -> Verdict:
    """Judge that every required item is known; those that the road fills are, once it has been walked."""
    return conclude("card", [_finding(item, known.get(item, "")) for item in dict.fromkeys(required)])


def _finding(item: str, value: str) -> Finding:
    if item in BY_ROAD:
        return Finding(item, True, "the road fills it")
    if value.strip():
        return Finding(item, True, "it is stated")
    return Finding(item, False, f"card.required asks for it and it is empty; set card.{item}{ELSEWHERE.get(item, '')}")
