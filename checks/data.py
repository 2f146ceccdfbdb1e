"""The data gate: whether rows can teach a model to answer and to stop."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from loragate.limits import DataLimits
from loragate.row_work import CheckedFacts, RuleResult
from loragate.verdicts import Finding, Verdict, at_most, conclude

NULL_RULES = "_known"
KNOWN = "every fact is known for every row"
WHAT = {
    "rows": "rows must be there",
    "format": "every row must be readable in its format",
    "roles": "roles must alternate and end with the assistant",
    "answer_not_empty": "no answer may be empty",
    "answer_supervised": "every row must have an answer left to learn after truncation",
    "answer_length": "answers must not be longer than max_answer_chars",
    "stop_token_supervised": "every answer's stop token must be there and supervised after truncation",
    "not_truncated": "rows must fit into data.max_tokens",
    "answer_not_question": "an answer must not be its question again",
    "no_control_characters": "texts must be free of control characters and broken bytes",
    "bos_once": "no row may begin twice with the token that begins a text",
    "no_special_tokens": "no control token may stand in a text",
    "no_secrets": "no key or token may be learnt",
    "no_placeholders": "blanks must be filled in",
    "no_contacts": "e-mail addresses and telephone numbers are personal data",
    "language": "answers must be in the language of data.language",
    "no_duplicates": "exact copies must be rare",
    "no_near_duplicates": "near copies must be rare",
    "one_answer_per_question": "a question should have one answer",
    "no_canned_answers": "hardly any answer may be given to three questions or more",
    "not_in_protected": "training rows must not hold passages of protected rows",
    "not_in_training_rows": "held-out questions must not stand in the training rows",
    "not_near_training_rows": "held-out rows must not nearly stand in the training rows",
}
SIDES = {"train": "training rows", "heldout": "held-out rows"}
ONE_SIDED = frozenset(
    {
        "heldout.no_duplicates",
        "heldout.no_near_duplicates",
        "heldout.one_answer_per_question",
        "heldout.no_canned_answers",
        "heldout.not_in_protected",
        "train.not_in_training_rows",
        "train.not_near_training_rows",
    }
)
RULES = tuple(f"{side}.{rule}" for side in SIDES for rule in WHAT if f"{side}.{rule}" not in ONE_SIDED)
"""Every rule that must have been judged, on both sides."""


def judge(checked: CheckedFacts, limits: DataLimits) -> Verdict:
    """Judge what the expectations found; a rule that is missing, nothing evaluated, an error or a null refuses."""
    results = checked.results
    if not results:
        return conclude("data", [])
    dropped = _dropped(checked, limits) if limits.on_reject == "drop" else ()
    return conclude("data", [_facts_complete(results), *dropped, *_findings(results), *_not_judged(results)])


def _dropped(checked: CheckedFacts, limits: DataLimits) -> Iterator[Finding]:
    """Judge how much of each side was dropped; nothing of nothing is no share and does not pass."""
    for side, rows in checked.rows.items():
        dropped = checked.dropped.get(side, 0)
        share = dropped / rows if rows else math.nan
        what = f"{SIDES[side]}: share dropped ({dropped:,} of {rows:,})"
        yield at_most(f"{side}.dropped", share, limits.max_dropped_share, what)


def _findings(results: Sequence[RuleResult]) -> Iterator[Finding]:
    for result in results:
        if not result.rule.endswith(NULL_RULES):
            counted = result.rule.endswith(".rows")
            yield Finding(
                result.rule,
                result.success and result.evaluated > 0 and not result.error,
                _detail(result),
                _severity(result),
                value=result.evaluated if counted else result.unexpected,
                limit=result.bound if counted else _allowed(result),
                examples=result.examples,
                evidence="enough" if result.evaluated > 0 and not result.error else "none",
            )


def _allowed(result: RuleResult) -> int:
    """How many rows may break a rule."""
    return math.floor(result.bound * result.evaluated)


def _severity(result: RuleResult) -> Literal["refuse", "warn"]:
    """A rule that could not be evaluated refuses, whatever breaking it would mean."""
    return result.severity if result.evaluated > 0 and not result.error else "refuse"


def _not_judged(results: Sequence[RuleResult]) -> Iterator[Finding]:
    judged = {result.rule for result in results}
    for missing in (rule for rule in RULES if rule not in judged):
        side, _, rule = missing.partition(".")
        yield Finding(missing, False, f"{SIDES[side]}: the rule was not judged; {WHAT[rule]}", evidence="none")


def _facts_complete(results: Sequence[RuleResult]) -> Finding:
    """One finding for both sides: it is about our own facts, not about the rows."""
    known = [result for result in results if result.rule.endswith(NULL_RULES)]
    broken = [result for result in known if not result.success or result.error or not result.evaluated]
    if not known:
        return Finding("facts_complete", False, "no rule asked whether the facts about the rows are known")
    told = "; ".join(": ".join([result.rule, *result.examples[:1]]) for result in broken)
    return Finding("facts_complete", not broken, f"not known of every row: {told}" if broken else KNOWN)


def _detail(result: RuleResult) -> str:
    side, _, rule = result.rule.partition(".")
    side = SIDES[side]
    if result.error:
        return f"{side}: the rule could not be evaluated: {result.error}"
    if result.evaluated == 0:
        return f"{side}: there are none to judge; {WHAT[rule]}"
    if rule == "rows":
        return f"{side}: {result.evaluated:,} rows, at least {result.bound:,.0f} required"
    if not result.unexpected:
        return f"{side}: {WHAT[rule]}: holds for all {result.evaluated:,}"
    more = result.unexpected - len(result.examples)
    examples = "; ".join(result.examples) + (f"; and {more:,} more" if more else "")
    allowed = f", at most {_allowed(result):,} allowed" if result.bound else ""
    return f"{side}: {WHAT[rule]}: broken by {result.unexpected:,} of {result.evaluated:,}{allowed}: {examples}"
