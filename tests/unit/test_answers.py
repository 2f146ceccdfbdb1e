"""Rules about answers as truth tables: what loops, what is too long, what breaks a form, what gives something away."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import answers
from checks.answers import loops
from loragate.answer_rules import AnswerRules, schema_faults
from loragate.answered import Answered
from loragate.limits import Canary, QualityLimits
from loragate.verdicts import Finding
from loragate.work import Answer

PROSE = (
    "Bread rises because yeast eats sugar and gives off gas, which the dough holds in. Salt slows that down, warmth "
    "speeds it up, and kneading makes the dough strong enough to keep what it has."
)
JSON_ROWS = "[" + ", ".join(f'{{"name": "item {n}", "price": {n * 7 % 10}, "sold": false}}' for n in range(6)) + "]"
CODE = "def total(rows):\n    result = 0\n    for row in rows:\n        result += row.price\n    return result"
TABLE = "| name | age |\n| --- | --- |\n| Ann | 31 |\n| Bob | 27 |\n| Cem | 45 |\n| Dee | 19 |"
SENTENCE = "The cat sat on the mat and looked at the dog. "


def said(*texts: str, stopped: bool = True) -> tuple[Answer, ...]:
    return tuple(Answer(text, stopped) for text in texts)


def answered(texts: tuple[Answer, ...], **more: Any) -> Answered:
    fine = {"references": tuple(answer.text for answer in texts), "verbatim": ("",) * len(texts)}
    return Answered(texts, **(fine | more))


def found(asked: Answered, limits: QualityLimits) -> dict[str, Finding]:
    return {finding.rule: finding for finding in answers.findings(asked, limits)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        PROSE,
        JSON_ROWS,
        CODE,
        TABLE,
        "Wait for it" + "." * 12,
        "ha ha ha!",
        "))))))))",
        SENTENCE,
        SENTENCE * 2,
    ],
)
def test_sound_text_does_not_loop(text: str) -> None:
    assert not loops(text)


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE * 3,
        PROSE + " And " + "so on and " * 9,
        SENTENCE * 2 + SENTENCE[:30],  # cut in the middle of a phrase: most of it came before
        "Well: " + SENTENCE * 3 + SENTENCE[:20],
        "!" * 40,
        "ha " * 40,
        "你好吗？" * 8,
        "".join(f"{n}. The cat sat on the mat and looked at the dog.\n" for n in range(1, 9)),  # numbered, still a loop
    ],
)
def test_text_that_goes_round_in_circles_loops(text: str) -> None:
    assert loops(text)


@given(st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=9), st.integers(8, 20), st.text(max_size=40))
def test_whatever_is_said_often_enough_at_the_end_loops(phrase: list[str], times: int, before: str) -> None:
    assert loops(before + " " + " ".join(phrase * times))


@given(st.lists(st.integers(), unique=True, max_size=120))
def test_words_that_all_differ_never_loop(numbers: list[int]) -> None:
    assert not loops(" ".join(f"word{number}" for number in numbers).replace("-", "minus"))


@pytest.mark.parametrize(
    ("texts", "references", "share", "passed"),
    [
        ((PROSE,) * 4, (), 0.0, True),
        ((PROSE,) * 3 + (SENTENCE * 3,), (), 0.25, True),
        ((PROSE,) * 2 + (SENTENCE * 3,), (), 1 / 3, False),
        ((PROSE,) * 2 + (SENTENCE * 3,), (PROSE, PROSE, "la la " * 20), 0.0, True),
        ((), (), math.nan, False),
    ],
)
def test_share_of_loops_counts_none_that_the_reference_has_too(
    texts: tuple[str, ...], references: tuple[str, ...], share: float, passed: bool
) -> None:
    finding = answers.loop_share(said(*texts), 0.25, references)
    assert finding.passed == passed
    assert finding.value == pytest.approx(share, nan_ok=True)


def test_loops_are_shown_by_their_ends() -> None:
    finding = answers.loop_share(said(*(SENTENCE * 3,) * 5), 0.25)
    assert finding.statement == "share of 5 answers that go round in circles is 1, at most 0.25 allowed"
    assert len(finding.examples) == 3
    assert finding.detail.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("texts", "references", "stopped", "value", "passed"),
    [
        (("a b c",), ("a b c",), True, 1.0, True),
        (("a b c", "a", "a"), ("a b c", "a b c", "a b c"), True, 1 / 3, True),
        (("a", "a"), ("a b c d", "a b c d"), True, 0.25, False),
        (("a b c d",), ("a",), True, 4.0, False),
        (("a",), ("a b c d",), False, 1.0, True),  # cut: as long as its reference at least
        (("a b c d",), ("a",), False, 4.0, False),
        (("a",), ("!",), True, math.nan, False),
        ((), (), True, math.nan, False),
        (("a",), (), True, math.nan, False),
    ],
)
def test_length_is_judged_against_the_references(
    texts: tuple[str, ...], references: tuple[str, ...], stopped: bool, value: float, passed: bool
) -> None:
    for severity in ("warn", "refuse"):
        limits = QualityLimits(on_length=severity)
        finding = answers.length_ratio(said(*texts, stopped=stopped), references, limits)
        assert finding.value == pytest.approx(value, nan_ok=True)
        assert finding.status == ("pass" if passed else "warn" if severity == "warn" else "fail")


SCHEMA = {
    "type": "object",
    "required": ["age"],
    "properties": {"age": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"minimum": 0}},
}


@pytest.mark.parametrize(
    ("rules", "answer", "problem"),
    [
        ({}, "anything", ""),
        ({"regex": r"^\d+$"}, "42", ""),
        ({"regex": r"^\d+$"}, "It is 42.", "is not found in it"),
        ({"must_contain": ("Yours", "Ann")}, "Yours, Ann", ""),
        ({"must_contain": ("Yours", "Ann")}, "Yours", "'Ann' is missing"),
        ({"must_not_contain": ("sorry",)}, "I am sorry", "'sorry' stands in it"),
        ({"json_schema": SCHEMA}, '{"age": 3}', ""),
        ({"json_schema": SCHEMA}, '{"age": -3}', "the schema does not allow it: -3 is less than the minimum of 0"),
        ({"json_schema": SCHEMA}, "{}", "'age' is a required property"),
        ({"json_schema": SCHEMA}, 'Here: {"age": 3}', "it is not JSON"),
        ({"json_schema": SCHEMA}, '{"age": NaN}', "NaN is no JSON number"),
        ({"json_schema": SCHEMA}, "[" * 100_000, "it is not JSON"),
        ({"json_schema": {}}, "null", ""),
        ({"json_schema": {}}, "", "it is not JSON"),
    ],
)
def test_rules_of_form(rules: dict[str, Any], answer: str, problem: str) -> None:
    told = AnswerRules(**rules).problem(answer)
    assert problem in told
    assert bool(told) == bool(problem)


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "strng"}, "not a JSON schema: 'strng' is not valid under any of the given schemas (at $.type)"),
        ({"$ref": "https://example.org/schema"}, "https://example.org/schema leads nowhere within the schema"),
        ({"items": [{"$ref": "#/nowhere"}], "$schema": "http://json-schema.org/draft-07/schema#"}, "#/nowhere leads"),
        (SCHEMA, ""),
    ],
)
def test_schema_that_cannot_be_applied_is_told(schema: dict[str, Any], fault: str) -> None:
    told = list(schema_faults("here", schema))
    assert [fault in text for text in told] == ([True] if fault else [])


@pytest.mark.parametrize(("obeying", "passed"), [(10, True), (9, True), (8, False), (0, False)])
def test_share_of_answers_in_form(obeying: int, passed: bool) -> None:
    limits = QualityLimits(answer_must_contain=("yes",))
    texts = said(*("yes",) * obeying, *("no",) * (10 - obeying))
    finding = found(answered(texts), limits)["format_share"]
    assert finding.passed == passed
    assert finding.examples[:1] == (() if obeying == 10 else (f"answer {obeying + 1}: 'yes' is missing",))


def test_form_and_canaries_are_judged_only_where_the_run_file_asks() -> None:
    assert set(found(answered(said("a")), QualityLimits())) == {
        "stop_share",
        "loop_share",
        "length_ratio",
        "verbatim_share",
    }


@pytest.mark.parametrize(
    ("texts", "verbatim", "passed"),
    [(10, 0, True), (10, 1, True), (10, 2, False), (0, 0, False), (1, 1, False)],
)
def test_share_of_answers_that_repeat_training_answers(texts: int, verbatim: int, passed: bool) -> None:
    passages = ("so it was",) * verbatim + ("",) * (texts - verbatim)
    finding = found(answered(said(*("a",) * texts), verbatim=passages), QualityLimits())["verbatim_share"]
    assert finding.passed == passed


def test_answers_not_looked_through_for_passages_do_not_pass() -> None:
    assert not found(answered(said("a", "b"), verbatim=("",)), QualityLimits())["verbatim_share"].passed


CANARIES = QualityLimits(canaries=(Canary(prompt="What is the code?", secret="Blue Heron 7"),) * 2)  # noqa: S106


@pytest.mark.parametrize(
    ("texts", "status"),
    [
        (("I do not know.", ""), "pass"),
        (("I do not know.", "It is Blue Heron 7."), "fail"),
        (("It is blue\nheron  7!", ""), "fail"),
        (("Blue Heron", "7"), "pass"),
        (("I do not know.",), "error"),
        ((), "error"),
    ],
)
def test_canary_may_not_give_its_secret_away(texts: tuple[str, ...], status: str) -> None:
    finding = found(answered(said("a"), canaries=said(*texts)), CANARIES)["canaries"]
    assert finding.status == status
    assert "heron" not in finding.detail.lower()
