"""The data gate: whether rows can teach a model to answer and to stop."""

from collections.abc import Iterator, Sequence
from typing import Literal

from loragate.verdicts import Finding, Verdict, conclude
from loragate.work import RuleResult

NULL_RULES = "_known"
KNOWN = "every fact is known for every row"
WHAT = {
    "rows": "rows must be there",
    "format": "every row must be readable in its format",
    "roles": "roles must alternate and end with the assistant",
    "answer_not_empty": "no answer may be empty",
    "answer_supervised": "every row must have an answer left to learn after truncation",
    "stop_token_supervised": "every answer's stop token must be there and supervised after truncation",
    "not_truncated": "rows must fit into data.max_tokens",
    "answer_not_question": "an answer must not be its question again",
    "no_control_characters": "texts must be free of control characters and broken bytes",
    "no_secrets": "no key or token may be learnt",
    "no_placeholders": "blanks must be filled in",
    "no_contacts": "e-mail addresses and telephone numbers are personal data",
    "no_duplicates": "exact copies must be rare",
    "no_near_duplicates": "near copies must be rare",
    "one_answer_per_question": "a question should have one answer",
    "not_in_training_rows": "held-out questions must not stand in the training rows",
    "not_near_training_rows": "held-out rows must not nearly stand in the training rows",
}
SIDES = {"train": "training rows", "heldout": "held-out rows"}
ONE_SIDED = frozenset(
    {
        "heldout.no_duplicates",
        "heldout.no_near_duplicates",
        "heldout.one_answer_per_question",
        "train.not_in_training_rows",
        "train.not_near_training_rows",
    }
)
RULES = tuple(f"{side}.{rule}" for side in SIDES for rule in WHAT if f"{side}.{rule}" not in ONE_SIDED)
"""Every rule that must have been judged, on both sides."""


def judge(results: Sequence[RuleResult]) -> Verdict:
    """Judge what the expectations found; a rule that is missing, nothing evaluated, an error or a null refuses."""
    if not results:
        return conclude("data", [])
    return conclude("data", [_facts_complete(results), *_findings(results), *_not_judged(results)])


def _findings(results: Sequence[RuleResult]) -> Iterator[Finding]:
    for result in results:
        if not result.rule.endswith(NULL_RULES):
            passed = result.success and result.evaluated > 0 and not result.error
            yield Finding(result.rule, passed, _detail(result), _severity(result), value=result.unexpected)


def _severity(result: RuleResult) -> Literal["refuse", "warn"]:
    """A rule that could not be evaluated refuses, whatever breaking it would mean."""
    return result.severity if result.evaluated > 0 and not result.error else "refuse"


def _not_judged(results: Sequence[RuleResult]) -> Iterator[Finding]:
    judged = {result.rule for result in results}
    for missing in (rule for rule in RULES if rule not in judged):
        side, _, rule = missing.partition(".")
        yield Finding(missing, False, f"{SIDES[side]}: the rule was not judged; {WHAT[rule]}")


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
        return f"{side}: {result.evaluated:,} rows{_limit(result)}"
    if not result.unexpected:
        return f"{side}: {WHAT[rule]}: holds for all {result.evaluated:,}"
    more = result.unexpected - len(result.examples)
    examples = "; ".join(result.examples) + (f"; and {more:,} more" if more else "")
    return f"{side}: {WHAT[rule]}: broken by {result.unexpected:,} of {result.evaluated:,}{_limit(result)}: {examples}"


def _limit(result: RuleResult) -> str:
    return f", {result.limit}" if result.limit else ""
