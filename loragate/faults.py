"""What is wrong with a run file, as sentences that name the place, what was found and what is allowed."""

import difflib
import json
from collections.abc import Callable, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def explain(error: ValidationError, keys_at: Callable[[Sequence[int | str]], Sequence[str]]) -> list[str]:
    """Return one sentence a fault; `keys_at` names the keys that are allowed at a place."""
    return [_sentence(fault, keys_at) for fault in _faults(error)]


def _faults(error: ValidationError) -> list[ErrorDetails]:
    """List the faults, leaving out a list that is too short only because its items are faulty."""
    faults = error.errors()
    inner = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inner]


def _sentence(error: ErrorDetails, keys_at: Callable[[Sequence[int | str]], Sequence[str]]) -> str:
    where = ".".join(_told(error["loc"]))
    if error["type"] == "extra_forbidden":
        known = keys_at(error["loc"][:-1])
        return f"{where}: unknown key{_did_you_mean(str(error['loc'][-1]), known)}; allowed here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: required, but missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    found = json.dumps(error["input"], default=str)
    close = ""
    if error["type"] == "literal_error":
        options = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        close = _did_you_mean(str(error["input"]), options)
    message = error["msg"].removeprefix("Input should be ").removeprefix("a ")
    return f"{where}: found {found[:200]}, allowed: {message}{close}"


def _told(location: Sequence[int | str]) -> list[str]:
    """The parts of a fault's place that the run file has, too: no names of types, no tags of a choice between two."""
    parts = [str(part) for part in location if not str(part).startswith(("tuple[", "constrained-"))]
    inside = ("data", "train")
    return [part for i, part in enumerate(parts) if not (i == 3 and tuple(parts[:2]) == inside)]  # noqa: PLR2004


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f' (did you mean "{close[0]}"?)' if close else ""
