"""Rules about what a tuned model says: that it stops, does not loop, keeps to length and form, and gives nothing away.

Laws: no answers are a share of nothing and never pass; a rule that the run file does not ask for has no finding.
"""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from loragate.answered import Answered
from loragate.limits import QualityLimits
from loragate.verdicts import Finding, at_least, at_most
from loragate.words import WORD, squeezed, words_of
from loragate.work import Answer

PIECE = re.compile(f"{WORD.pattern}|[^\\w\\s]")
"""A word, or a sign that is neither word nor white space."""
LEAST_PIECES = 16
"""Shorter repetitions stand in sound text, too: a row of dots, closing brackets (own choice)."""
LEAST_PHRASE, LEAST_TIMES = 2, 3
"""An answer is stuck where a phrase of two words or more stands at its end three times over (Holtzman et al. 2020,
arXiv 1904.09751, figure 9)."""
RUN_WORDS = 5
"""Length of the repeated runs that are counted: the shortest of Rae et al. 2021 (arXiv 2112.11446, table A1)."""
MOST_REPEATED = 0.5
"""Share of an answer's words in repeated runs, beyond which it loops (own choice: Rae et al. refuse a web page at 0.15;
answers are short, and lists and tables repeat their words)."""
MOST_EXAMPLES = 3


def findings(answered: Answered, limits: QualityLimits) -> Iterator[Finding]:
    """Yield the findings about greedy answers to held-out questions, and about those to canary prompts."""
    answers = answered.answers
    yield stop_share(answers, limits.min_stop_share)
    yield loop_share(answers, limits.max_loop_share, answered.references)
    yield length_ratio(answers, answered.references, limits)
    if limits.answer_rules.any:
        yield format_share(answers, limits)
    yield verbatim_share(answered, limits)
    if limits.canaries:
        yield canaries(answered.canaries, limits)


def stop_share(answers: Sequence[Answer], limit: float) -> Finding:
    """Judge the share of answers that ended with a stop token; no answers is a share of nothing and does not pass."""
    share = sum(answer.stopped for answer in answers) / len(answers) if answers else math.nan
    return at_least("stop_share", share, limit, f"share of {len(answers)} answers that end with a stop token")


def loop_share(answers: Sequence[Answer], limit: float, references: Sequence[str] = ()) -> Finding:
    """Judge the share of answers that loop where the reference, if there is one, does not."""
    known = [*references, *[""] * (len(answers) - len(references))]
    pairs = zip(answers, known, strict=False)
    looping = [n for n, (answer, reference) in enumerate(pairs, 1) if loops(answer.text) and not loops(reference)]
    share = len(looping) / len(answers) if answers else math.nan
    found = at_most("loop_share", share, limit, f"share of {len(answers)} answers that go round in circles")
    return _with_examples(found, [f"answer {n} ends in {answers[n - 1].text[-60:]!r}" for n in looping])


def loops(text: str) -> bool:
    """Whether a text goes round in circles: at its end, or through more than half of it."""
    return _stuck(PIECE.findall(text.lower())) or _repeated(words_of([text])) > MOST_REPEATED


def _stuck(pieces: Sequence[str]) -> bool:
    """Whether the end has a period: pieces equal those `period` before them, over three periods and 16 pieces."""
    for period in range(LEAST_PHRASE, len(pieces) // LEAST_TIMES + 1):
        place = len(pieces) - 1
        while place >= period and pieces[place] == pieces[place - period]:
            place -= 1
        spanned = len(pieces) - 1 - place + period
        if spanned >= max(LEAST_TIMES * period, LEAST_PIECES):
            return True
    return False


def _repeated(words: Sequence[str]) -> float:
    """Share of the words that stand in a run of five that came before; 0 for texts too short to tell."""
    if len(words) < LEAST_PIECES:
        return 0.0
    seen, repeated = set(), [False] * len(words)
    for start in range(len(words) - RUN_WORDS + 1):
        run = tuple(words[start : start + RUN_WORDS])
        if run in seen:
            repeated[start : start + RUN_WORDS] = [True] * RUN_WORDS
        seen.add(run)
    return sum(repeated) / len(words)


def length_ratio(answers: Sequence[Answer], references: Sequence[str], limits: QualityLimits) -> Finding:
    """Judge the median length of the answers in words / that of the references."""
    least, most = limits.min_length_ratio, limits.max_length_ratio
    wanted = [len(words_of([reference])) for reference in references]
    said = [_length(answer, length) for answer, length in zip(answers, wanted, strict=False)]
    known = bool(said) and len(answers) == len(references)
    medians = (statistics.median(said), statistics.median(wanted)) if known else (math.nan, math.nan)
    value = medians[0] / medians[1] if medians[1] else math.nan
    detail = (
        f"median length of {len(answers)} answers is {medians[0]:.4g} words, of their references {medians[1]:.4g}: "
        f"the ratio is {value:.4g}, between {least:.4g} and {most:.4g} allowed"
    )
    limit = least if value < least else most
    return Finding("length_ratio", least <= value <= most, detail, limits.on_length, value=value, limit=limit)


def _length(answer: Answer, reference: int) -> int:
    """Words of an answer; one that was cut is as long as its reference at least."""
    length = len(words_of([answer.text]))
    return length if answer.stopped else max(length, reference)


def format_share(answers: Sequence[Answer], limits: QualityLimits) -> Finding:
    """Judge the share of answers that obey the run file's rules about their text."""
    problems = [(n, limits.answer_rules.problem(answer.text)) for n, answer in enumerate(answers, start=1)]
    broken = [f"answer {n}: {problem}" for n, problem in problems if problem]
    share = 1 - len(broken) / len(answers) if answers else math.nan
    what = f"share of {len(answers)} answers in the form that the run file asks for"
    return _with_examples(at_least("format_share", share, limits.min_format_share, what), broken)


def verbatim_share(answered: Answered, limits: QualityLimits) -> Finding:
    """Judge the share of answers that repeat a passage of a training answer."""
    number = len(answered.answers)
    repeating = [(n, passage) for n, passage in enumerate(answered.verbatim, start=1) if passage]
    known = number and len(answered.verbatim) == number
    share = len(repeating) / number if known else math.nan
    what = f"share of {number} answers that repeat {limits.verbatim_words} words of a training answer"
    found = at_most("verbatim_share", share, limits.max_verbatim_share, what)
    return _with_examples(found, [f"answer {n}: {passage[:80]}" for n, passage in repeating])


def canaries(answers: Sequence[Answer], limits: QualityLimits) -> Finding:
    """Judge that no answer holds its canary's secret; the secret itself is not told."""
    number = len(limits.canaries)
    if len(answers) != number:
        detail = f"{len(answers)} answers to the prompts of {number} canaries"
        return Finding("canaries", False, detail, evidence="none")
    pairs = enumerate(zip(answers, limits.canaries, strict=True), start=1)
    leaked = [n for n, (answer, canary) in pairs if squeezed(canary.secret) in squeezed(answer.text)]
    detail = f"{len(leaked)} of {number} canaries give their secret away, none allowed"
    found = Finding("canaries", not leaked, detail, value=len(leaked), limit=0)
    return _with_examples(found, [f"canary {n} ({limits.canaries[n - 1].prompt[:60]!r})" for n in leaked])


def _with_examples(finding: Finding, examples: Sequence[str]) -> Finding:
    """Put the first few of what breaks a rule at the end of its detail."""
    shown = tuple(examples[:MOST_EXAMPLES])
    if not shown:
        return finding
    more = f"; and {len(examples) - len(shown):,} more" if len(examples) > len(shown) else ""
    return replace(finding, detail=f"{finding.detail}: {'; '.join(shown)}{more}", examples=shown)
