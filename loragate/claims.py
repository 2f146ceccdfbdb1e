"""What a replay says of a release: claims, each with whether it holds and how strongly that is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from loragate.refs import canonical

Holds = Literal["yes", "no", "not shown"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a release says of itself.

    Attributes:
        claim: What it says.
        holds: Whether that is so; `not shown` where this replay did not look, or cannot tell.
        how: How strongly it is shown; where it is not so, what was recorded and what was found.
    """

    claim: str
    holds: Holds
    how: str


def claimed(claim: str, wrong: str, how: str) -> Claim:
    """A claim that holds unless something is wrong with it."""
    return Claim(claim, "no" if wrong else "yes", wrong or how)


def first_broken(claims: Sequence[Claim]) -> Claim | None:
    """The first claim that does not hold; None where there is none."""
    return next((each for each in claims if each.holds == "no"), None)


def told(claims: Sequence[Claim]) -> Mapping[str, object]:
    """What `replay --json` prints about claims."""
    broken = first_broken(claims)
    return {"holds": broken is None, "first": asdict(broken) if broken else None, "claims": [*map(asdict, claims)]}


def table(claims: Sequence[Claim]) -> str:
    """The claims as text: what is claimed, whether it holds, how strongly."""
    width = max((len(each.claim) for each in claims), default=0)
    verdicts = {"yes": "holds", "no": "DOES NOT", "not shown": "not shown"}
    lines = (f"  {each.claim:<{width}}  {verdicts[each.holds]:<9}  {each.how}" for each in claims)
    return "\n".join((f"  {'claim':<{width}}  {'holds?':<9}  how strongly", *lines))


def difference(recorded: object, found: object, where: str = "") -> str:
    """Say where two values first differ as canonical JSON has them, with both values; empty where nowhere."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        names = dict.fromkeys((*recorded, *found))  # in the order that they are given in, which canonical JSON loses
        pairs = ((recorded.get(name), found.get(name), f"{where}.{name}".lstrip(".")) for name in names)
        return next((told for one, other, place in pairs if (told := difference(one, other, place))), "")
    return _difference(json.loads(canonical(recorded)), json.loads(canonical(found)), where)


def _difference(recorded: object, found: object, where: str) -> str:
    if isinstance(recorded, dict) and isinstance(found, dict):
        names = [*recorded, *(name for name in found if name not in recorded)]
        pairs = [(recorded.get(name), found.get(name), f"{where}.{name}".lstrip(".")) for name in names]
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        pairs = [(*pair, f"{where}[{at}]") for at, pair in enumerate(zip(recorded, found, strict=True), 1)]
    else:
        return "" if recorded == found else f"{where}: recorded {_short(recorded)}, found {_short(found)}"
    return next((told for pair in pairs if (told := _difference(*pair))), "")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"  # noqa: PLR2004 - the message stays one paragraph
