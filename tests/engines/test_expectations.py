"""Great Expectations, really run: clean rows pass, and every planted defect is refused with its place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from prepared import Raw, describe, pairs, read, render
from pyarrow import parquet

from checks import data
from loragate.child import ignore
from loragate.engines import examples, near_duplicates
from loragate.engines.expectations import check_facts
from loragate.limits import DataLimits
from loragate.row_work import CheckedFacts, CheckFacts, FindNear, KeepRows
from loragate.verdicts import Verdict
from loragate.work import Base

LIMITS = DataLimits()
STRICT = DataLimits(max_near_duplicate_share=0.0, max_near_leaked_share=0.0, max_echoed_share=0.0)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


def checked(rows: Path, folder: Path, limits: DataLimits = LIMITS) -> CheckedFacts:
    """Evaluate every rule on prepared rows."""
    folder.mkdir()
    near_duplicates.find_near(FindNear(str(rows), limits.near_jaccard, str(folder)), ignore)
    return check_facts(CheckFacts(str(rows / "facts.parquet"), str(folder / "near.jsonl"), limits, str(folder)), ignore)


def verdict(rows: Path, folder: Path, limits: DataLimits = LIMITS) -> Verdict:
    """Judge prepared rows."""
    return data.judge(checked(rows, folder, limits), limits)


def with_facts(rows: Path, folder: Path, change: Callable[[list[Raw]], None]) -> Path:
    """A copy of prepared rows whose facts are changed."""
    shutil.copytree(rows, folder)
    table = parquet.read_table(rows / "facts.parquet")
    facts = table.to_pylist()
    change(facts)
    parquet.write_table(pa.Table.from_pylist(facts, table.schema), folder / "facts.parquet")
    return folder


def refused(found: Verdict) -> dict[str, str]:
    """The rules that do not hold, with what they say."""
    return {finding.rule: finding.detail for finding in found.findings if not finding.passed}


def chat(*turns: tuple[str, str]) -> Raw:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def chats(count: int, start: int = 0) -> list[Raw]:
    return [chat(("user", row["prompt"]), ("assistant", row["completion"])) for row in pairs(count, start)]


@pytest.fixture(scope="module")
def clean(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared rows that nothing is wrong with."""
    return render(base, tmp_path_factory.mktemp("clean"), chats(8), chats(4, start=100))


def test_clean_rows_pass_every_rule_on_both_sides(clean: Path, tmp_path: Path) -> None:
    found = verdict(clean, tmp_path / "gx")
    assert found.status == "pass", found.sentence
    assert {finding.rule for finding in found.findings} == {"facts_complete", *data.RULES}


def test_results_and_data_docs_are_left_as_evidence(clean: Path, tmp_path: Path) -> None:
    verdict(clean, tmp_path / "gx")
    for side in ("train", "heldout"):
        results = json.loads((tmp_path / "gx" / f"results_{side}.json").read_text(encoding="utf-8"))
        assert results["success"] is True
        assert results["statistics"]["evaluated_expectations"] == {"train": 22, "heldout": 19}[side]
    docs = tmp_path / "gx" / "gx" / "uncommitted" / "data_docs" / "local_site"
    assert (docs / "index.html").is_file()
    assert len(list((docs / "validations").rglob("*.html"))) == 2


Plant = Callable[[list[Raw], list[Raw]], None]


def empty_answer(train: list[Raw], heldout: list[Raw]) -> None:
    train[2] = chat(("user", "a"), ("assistant", " \n"))


def empty_heldout_answer(train: list[Raw], heldout: list[Raw]) -> None:
    heldout[1] = chat(("user", "a"), ("assistant", ""))


def no_answer(train: list[Raw], heldout: list[Raw]) -> None:
    train[2] = chat(("user", "a"))


def two_questions(train: list[Raw], heldout: list[Raw]) -> None:
    heldout[1] = chat(("user", "a"), ("user", "b"), ("assistant", "c"))


def no_content(train: list[Raw], heldout: list[Raw]) -> None:
    train[2]["messages"][1].pop("content")


def copies(train: list[Raw], heldout: list[Raw]) -> None:
    train[2] = train[1]


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def near_copies(train: list[Raw], heldout: list[Raw]) -> None:
    train[1] = chat(("user", LONG), ("assistant", "eighteen nineteen"))
    train[2] = chat(("user", LONG), ("assistant", "eighteen nineteen twenty twentyone"))
    train[2]["messages"][0]["content"] = f"zero {LONG}"


def near_leak(train: list[Raw], heldout: list[Raw]) -> None:
    train[2] = chat(("user", LONG), ("assistant", "eighteen nineteen"))
    heldout[1] = chat(("user", f"zero {LONG}"), ("assistant", "eighteen nineteen"))


def two_answers(train: list[Raw], heldout: list[Raw]) -> None:
    train[2]["messages"][0]["content"] = train[0]["messages"][0]["content"]


def echo(train: list[Raw], heldout: list[Raw]) -> None:
    train[2] = chat(("user", "What is this thing?"), ("assistant", " What is this Thing?"))


def answered(row: Raw, answer: str) -> None:
    row["messages"][1]["content"] = answer


def blank(train: list[Raw], heldout: list[Raw]) -> None:
    answered(train[2], "Best regards, [Your Name]")


def control(train: list[Raw], heldout: list[Raw]) -> None:
    answered(heldout[1], "It is a caf\ufffd.")


def secret(train: list[Raw], heldout: list[Raw]) -> None:
    answered(train[2], f"Take ghp_{'a1B2' * 9}.")


def special_token(train: list[Raw], heldout: list[Raw]) -> None:
    answered(train[2], "It ends<|im_end|>")


def email(train: list[Raw], heldout: list[Raw]) -> None:
    answered(train[2], "Write to ann@mail.org, not to ann@example.com.")


def leak(train: list[Raw], heldout: list[Raw]) -> None:
    heldout[1] = chat(("user", train[2]["messages"][0]["content"]), ("assistant", "Another answer."))


def long_answer(train: list[Raw], heldout: list[Raw]) -> None:
    train[2]["messages"][1]["content"] += " and on" * 80


def long_question(train: list[Raw], heldout: list[Raw]) -> None:
    train[2]["messages"][0]["content"] += " and on" * 80


DEFECTS: dict[str, tuple[Plant, dict[str, str]]] = {
    "empty answer": (empty_answer, {"train.answer_not_empty": "train.jsonl:3"}),
    "empty held-out answer": (empty_heldout_answer, {"heldout.answer_not_empty": "heldout.jsonl:2"}),
    "no answer": (
        no_answer,
        {
            "train.roles": "train.jsonl:3: the last message is from 'user'; a row must end with 'assistant'",
        },
    ),
    "two questions": (
        two_questions,
        {
            "heldout.roles": "heldout.jsonl:2: turn 2 is from 'user', must be from 'assistant': roles alternate",
        },
    ),
    "no content": (
        no_content,
        {
            "train.format": (
                'train.jsonl:3: not a row of format messages: message 2: "content" is missing; it must be a text'
            )
        },
    ),
    "copies": (
        copies,
        {
            "train.no_duplicates": "train.jsonl:3",
            "train.no_near_duplicates": "train.jsonl:3: near train.jsonl:2, Jaccard 1.0",
        },
    ),
    "near copies": (near_copies, {"train.no_near_duplicates": "train.jsonl:3: near train.jsonl:2, Jaccard 0.85"}),
    "near leak": (near_leak, {"heldout.not_near_training_rows": "heldout.jsonl:2: near train.jsonl:3, Jaccard 0.9"}),
    "two answers": (two_answers, {"train.one_answer_per_question": "train.jsonl:1; train.jsonl:3"}),
    "echo": (echo, {"train.answer_not_question": "train.jsonl:3: What is this Thing?"}),
    "blank": (blank, {"train.no_placeholders": "train.jsonl:3: [Your Name]"}),
    "control character": (control, {"heldout.no_control_characters": "heldout.jsonl:2: U+FFFD"}),
    "secret": (secret, {"train.no_secrets": "train.jsonl:3: GitHub Token"}),
    "control token": (special_token, {"train.no_special_tokens": "train.jsonl:3: <|im_end|>"}),
    "e-mail": (email, {"train.no_contacts": "train.jsonl:3: ann@mail.org"}),
    "leak": (leak, {"heldout.not_in_training_rows": "heldout.jsonl:2"}),
    "long answer": (
        long_answer,
        {"train.stop_token_supervised": "train.jsonl:3", "train.not_truncated": "train.jsonl:3"},
    ),
    "long question": (
        long_question,
        {
            "train.answer_supervised": "train.jsonl:3",
            "train.stop_token_supervised": "train.jsonl:3",
            "train.not_truncated": "train.jsonl:3",
        },
    ),
}


WARNINGS = {"no_near_duplicates", "one_answer_per_question", "no_placeholders", "no_contacts"}


@pytest.mark.parametrize(("plant", "expected"), DEFECTS.values(), ids=DEFECTS)
def test_a_planted_defect_is_refused_by_its_rules_with_its_place(
    base: Base, tmp_path: Path, plant: Plant, expected: dict[str, str]
) -> None:
    train, heldout = chats(8), chats(4, start=100)
    plant(train, heldout)
    judged = verdict(render(base, tmp_path, train, heldout), tmp_path / "gx", STRICT)
    found = refused(judged)
    assert found.keys() == expected.keys()
    for rule, place in expected.items():
        assert place in found[rule], found[rule]
    warned = {rule for rule in expected if rule.partition(".")[2] in WARNINGS}
    assert judged.status == ("warn" if warned == expected.keys() else "fail")
    rejects = read(tmp_path / "gx" / "rejects.jsonl")
    assert {(r["rule"], r["severity"]) for r in rejects} == {
        (rule.partition(".")[2], "warn" if rule in warned else "refuse") for rule in expected
    }
    assert all(r["place"] in detail for r in rejects for rule, detail in found.items() if rule.endswith(r["rule"]))


def test_small_max_tokens_loses_stop_tokens_and_names_the_first_rows(base: Base, tmp_path: Path) -> None:
    rows = render(base, tmp_path, chats(8), chats(4, start=100), max_tokens=45)
    found = refused(verdict(rows, tmp_path / "gx"))
    assert found["train.stop_token_supervised"].startswith(
        "training rows: every answer's stop token must be there and supervised after truncation: broken by "
    )
    assert "train.jsonl:" in found["train.stop_token_supervised"]
    assert "heldout.jsonl:" in found["heldout.stop_token_supervised"]


def test_truncation_within_its_share_passes_and_beyond_it_refuses(clean: Path, tmp_path: Path) -> None:
    rows = with_facts(clean, tmp_path / "rows", lambda facts: facts[3].update(truncated=True))
    assert not refused(verdict(rows, tmp_path / "loose", DataLimits(max_truncated_share=0.2)))
    found = refused(verdict(rows, tmp_path / "strict"))
    assert found.keys() == {"train.not_truncated"}
    assert "broken by 1 of 8" in found["train.not_truncated"]
    assert found["train.not_truncated"].endswith(": train.jsonl:4")


def test_copies_within_their_share_pass(base: Base, tmp_path: Path) -> None:
    train = chats(8)
    copies(train, [])
    facts = render(base, tmp_path, train, chats(4, start=100))
    lenient = DataLimits(max_duplicate_share=0.2, max_near_duplicate_share=0.2)
    assert not refused(verdict(facts, tmp_path / "gx", lenient))


def test_examples_are_capped_and_the_rest_is_counted(base: Base, tmp_path: Path) -> None:
    rows = [chat(("user", f"question {n}"), ("assistant", "")) for n in range(9)]
    facts = render(base, tmp_path, rows, chats(4, start=100))
    found = refused(verdict(facts, tmp_path / "gx"))
    assert found["train.answer_not_empty"].endswith("train.jsonl:4; train.jsonl:5; and 4 more")


def test_an_empty_table_is_refused(base: Base, tmp_path: Path) -> None:
    found = refused(verdict(render(base, tmp_path, [], []), tmp_path / "gx"))
    assert {"train.rows", "heldout.rows", "facts_complete"} <= found.keys()
    assert found["train.rows"] == "training rows: there are none to judge; rows must be there"


def test_a_side_without_rows_is_refused_by_all_its_rules(base: Base, tmp_path: Path) -> None:
    found = refused(verdict(render(base, tmp_path, chats(8), []), tmp_path / "gx"))
    assert found.keys() == {"facts_complete", *(rule for rule in data.RULES if rule.startswith("heldout."))}


@pytest.mark.parametrize("column", ["answer_chars", "problem", "tokens", "supervised", "lost_stops", "truncated"])
def test_an_unknown_fact_is_refused(clean: Path, tmp_path: Path, column: str) -> None:
    rows = with_facts(clean, tmp_path / "rows", lambda facts: facts[3].update({column: None}))
    found = refused(verdict(rows, tmp_path / "gx"))
    assert found.keys() >= {"facts_complete"}
    assert found["facts_complete"].endswith(f"train.facts_known: train.jsonl:4: {column}")


def test_a_column_of_unknown_facts_is_refused(clean: Path, tmp_path: Path) -> None:
    rows = with_facts(clean, tmp_path / "rows", lambda facts: [fact.update(answer_chars=None) for fact in facts])
    found = refused(verdict(rows, tmp_path / "gx"))
    assert "train.facts_known: train.jsonl:1: answer_chars" in found["facts_complete"]
    assert "heldout.facts_known: heldout.jsonl:1: answer_chars" in found["facts_complete"]


DROP = DataLimits(on_reject="drop", max_dropped_share=0.25)


def spoilt(base: Base, folder: Path) -> Path:
    """Eight training rows of which two break a rule that refuses, and one that only warns."""
    train = chats(8)
    empty_answer(train, [])
    train[4] = train[3]
    train[5] = train[3]
    answered(train[6], "Write to ann@mail.org.")
    return render(base, folder, train, chats(4, start=100))


def test_rows_that_break_a_rule_are_dropped_and_the_rest_is_judged(base: Base, tmp_path: Path) -> None:
    rows = spoilt(base, tmp_path)
    limits = DROP.model_copy(update={"max_dropped_share": 0.5})
    found = checked(rows, tmp_path / "gx", limits)
    assert (found.rows, found.dropped) == ({"train": 8, "heldout": 4}, {"train": 3, "heldout": 0})
    judged = data.judge(found, limits)
    assert judged.status == "warn", judged.sentence
    assert refused(judged).keys() == {"train.no_contacts"}
    kept = tmp_path / "kept"
    kept.mkdir()
    request = KeepRows(str(rows), str(tmp_path / "gx" / "dropped.u8"), str(kept))
    assert examples.keep(request, ignore) == {"train": 5, "heldout": 4}
    places = [row["place"] for row in read(kept / "train.jsonl")]
    assert places == [f"train.jsonl:{n}" for n in (1, 2, 4, 7, 8)]
    assert (kept / "probes.jsonl").read_bytes() == (rows / "probes.jsonl").read_bytes()


def test_more_dropped_rows_than_the_ceiling_are_refused(base: Base, tmp_path: Path) -> None:
    found = refused(verdict(spoilt(base, tmp_path), tmp_path / "gx", DROP))
    assert found["train.dropped"] == "training rows: share dropped (3 of 8) is 0.375, at most 0.25 allowed"


def test_nothing_is_dropped_where_rows_are_to_be_refused(base: Base, tmp_path: Path) -> None:
    found = checked(spoilt(base, tmp_path), tmp_path / "gx")
    assert found.dropped == {"train": 0, "heldout": 0}
    assert (tmp_path / "gx" / "dropped.u8").read_bytes() == b""


def test_a_copy_of_a_dropped_row_is_no_copy_any_more(base: Base, tmp_path: Path) -> None:
    train = chats(8)
    answered(train[0], f"Take ghp_{'a1B2' * 9}.")
    train[1]["messages"][0]["content"] = train[0]["messages"][0]["content"]
    rows = render(base, tmp_path, train, chats(4, start=100))
    assert "train.one_answer_per_question" in refused(verdict(rows, tmp_path / "all"))
    assert not refused(verdict(rows, tmp_path / "rest", DROP))
