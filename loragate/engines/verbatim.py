"""Passages that answers repeat word for word from training answers, found in one pass over the training rows.

A run of `words` words is looked for by the shorter ones in it: wherever it stands in a training answer, one of the
runs of a few words that start at every (words - few + 1)th place lies within it. Only where such a one is known is the
answer looked at closely, so a pass costs little more than reading.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from loragate.child import Progress, Report
from loragate.rendering import read_rendered
from loragate.rows import TEXT, Conversation
from loragate.words import words_of
from loragate.work import FindVerbatim

FEW = 8
REPORTED_ROWS = 10_000

Run = tuple[str, ...]


def find_verbatim(request: FindVerbatim, report: Report) -> tuple[str, ...]:
    """Return for each answer the first passage that it repeats from a training answer and was not given; "" if none."""
    wanted = [
        _new_runs(answer, given, request.words) for answer, given in zip(request.answers, request.given, strict=True)
    ]
    known = {run for runs in wanted for run in runs}
    found = set(_taught_runs(request, known, report)) if known else set()
    return tuple(next((" ".join(run) for run in runs if run in found), "") for runs in wanted)


def _new_runs(answer: str, given: Sequence[str], length: int) -> list[Run]:
    """Runs of words of an answer that stand in nothing that was given."""
    old = {run for text in given for run in _runs(words_of([text]), length)}
    return [run for run in _runs(words_of([answer]), length) if run not in old]


def _taught_runs(request: FindVerbatim, known: set[Run], report: Report) -> Iterator[Run]:
    """Yield those of the known runs that stand in a training answer."""
    few = min(FEW, request.words)
    marks = {short for run in known for short in _runs(run, few)}
    with Path(request.train).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            for answer in _answers(read_rendered(line)[1]):
                words = words_of([answer])
                if any(short in marks for short in _runs(words, few, request.words - few + 1)):
                    yield from (run for run in _runs(words, request.words) if run in known)
            if number % REPORTED_ROWS == 0:
                report(Progress(number, 0, "rows"))


def _answers(conversation: Conversation) -> Iterator[str]:
    return (m.content for m in conversation.messages if m.role in ("assistant", TEXT) and m.taught)


def _runs(words: Sequence[str], length: int, step: int = 1) -> Iterator[Run]:
    return (tuple(words[start : start + length]) for start in range(0, len(words) - length + 1, step))
