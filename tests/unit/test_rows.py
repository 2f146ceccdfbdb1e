"""Rows: every format out of every container, each row with its place, none lost silently."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.config import Config, RunFile
from loragate.errors import DataFileError
from loragate.rows import Message, Row, find_files, read_canonical, read_file, short_names, split

CONVERSATION = (Message("user", 'What, "is"\nit?'), Message("assistant", "Grün – 緑\u2028ok"))
QUESTION, ANSWER = (message.content for message in CONVERSATION)

RAW: dict[str, dict[str, object]] = {
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "prompt_completion": {"prompt": QUESTION, "completion": ANSWER},
    "messages": {"messages": [{"role": m.role, "content": m.content} for m in CONVERSATION]},
}


def as_json(rows: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)


def as_jsonl(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


CONTAINERS: dict[str, Callable[[Sequence[Mapping[str, object]]], str]] = {
    "json": as_json,
    "jsonl": as_jsonl,
    "csv": as_csv,
}


def no_table(path: Path) -> Iterator[Mapping[str, object]]:
    raise AssertionError(path)


def rows_of(folder: Path, name: str, content: str | bytes, format_name: str = "auto") -> list[Row]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return list(read_file(path, name, format_name, no_table))


def one_problem(folder: Path, raw: object, format_name: str = "auto") -> str | None:
    (row,) = rows_of(folder, "rows.jsonl", json.dumps(raw), format_name)
    return row.problem


def asked(question: str, answer: str = "yes", number: int = 1) -> Row:
    return Row("rows.jsonl", number, (Message("user", question), Message("assistant", answer)))


@pytest.mark.parametrize("format_name", RAW)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("told", [True, False])
def test_every_format_in_every_container_gives_the_same_conversation(
    tmp_path: Path, format_name: str, container: str, told: bool
) -> None:
    text = CONTAINERS[container]([RAW[format_name]] * 2)
    rows = rows_of(tmp_path, f"rows.{container}", text, format_name if told else "auto")
    assert [(row.messages, row.problem) for row in rows] == [(CONVERSATION, None)] * 2


@pytest.mark.parametrize("container", CONTAINERS)
def test_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path, container: str) -> None:
    simple = [{"prompt": "a?", "completion": "a"}, {"prompt": "b?", "completion": "b"}]
    text = CONTAINERS[container](simple).replace("\r\n", "\n")
    expected = rows_of(tmp_path, f"rows.{container}", text)
    assert [row.messages[0].content for row in expected] == ["a?", "b?"]
    assert rows_of(tmp_path, f"rows.{container}", "\ufeff" + text.replace("\n", "\r\n")) == expected


def test_parquet_rows_come_from_the_table_reader(tmp_path: Path) -> None:
    rows = read_file(tmp_path / "rows.parquet", "rows.parquet", "auto", lambda _: iter([RAW["alpaca"]]))
    assert [(row.place, row.messages) for row in rows] == [("rows.parquet:1", CONVERSATION)]


def test_alpaca_input_follows_the_instruction_and_blank_input_leaves_no_trace(tmp_path: Path) -> None:
    raws = [{"instruction": "Add.", "input": value, "output": "3"} for value in ("1 2", " \n", None)]
    rows = rows_of(tmp_path, "rows.json", json.dumps(raws))
    assert [row.messages[0].content for row in rows] == ["Add.\n\n1 2", "Add.", "Add."]


def test_place_is_the_line_of_a_jsonl_and_the_element_of_a_json(tmp_path: Path) -> None:
    raw = {"prompt": "a?", "completion": "a"}
    line = json.dumps(raw)
    jsonl = rows_of(tmp_path, "rows.jsonl", f"\n{line}\n\n  \n{line}")
    assert [row.place for row in jsonl] == ["rows.jsonl:2", "rows.jsonl:5"]
    assert [row.place for row in rows_of(tmp_path, "rows.json", json.dumps([raw, raw]))] == [
        "rows.json:1",
        "rows.json:2",
    ]


def test_place_is_the_last_line_of_a_csv_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "rows.csv", 'prompt,completion\na?,a\n"b\nb?","b"\n')
    assert [row.place for row in rows] == ["rows.csv:2", "rows.csv:4"]


@pytest.mark.parametrize(
    ("raw", "format_name", "said"),
    [
        (
            {"prompt": "a?"},
            "auto",
            'not a prompt_completion row: "completion" is missing; it must be a text',
        ),
        ({"prompt": "a?", "completion": None}, "auto", '"completion" is null'),
        ({"prompt": "a?", "completion": 3}, "auto", '"completion" is int, must be a text'),
        ({"instruction": "a?", "input": [1], "output": "b"}, "auto", '"input" is list, must be a text'),
        (
            {"prompt": "a?", "completion": "\ud83d"},
            "auto",
            '"completion" has half a surrogate pair at character 1',
        ),
        ({"messages": []}, "auto", '"messages" must be a list with at least one message'),
        ({"messages": {"role": "user"}}, "auto", '"messages" must be a list with at least one message'),
        ({"messages": "[{]"}, "auto", '"messages" is a text that is not JSON'),
        ({"messages": ["hello"]}, "auto", "message 1 is str, must have role and content"),
        ({"messages": [{"role": "user"}]}, "auto", 'message 1: "content" is missing'),
        ({"prompt": "a?", "completion": "a"}, "alpaca", 'not a alpaca row: "instruction" is missing'),
        (["a?", "a"], "auto", "the row is list, must be an object with named fields"),
        (None, "auto", "the row is NoneType, must be an object with named fields"),
    ],
)
def test_row_that_cannot_be_read_keeps_its_place_and_the_reason(
    tmp_path: Path, raw: object, format_name: str, said: str
) -> None:
    assert said in str(one_problem(tmp_path, raw, format_name))


def test_faulty_row_does_not_take_others_with_it(tmp_path: Path) -> None:
    raws = [{"prompt": "a?", "completion": "a"}, {"prompt": "b?"}, 7, {"prompt": "c?", "completion": "c"}]
    rows = rows_of(tmp_path, "rows.json", json.dumps(raws))
    assert [bool(row.problem) for row in rows] == [False, True, True, False]
    assert [row.number for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "rows.jsonl",
            b'{"prompt": "a?", "completion": "a"}\n{"prompt"\n',
            r"rows\.jsonl:2: not JSON: .* \(column 10\)",
        ),
        ("rows.json", b'[\n{"prompt": }]', r"rows\.json:2:12: not JSON"),
        (
            "rows.json",
            b'{"prompt": "a?"}',
            r"rows\.json: holds one dict; a \.json data file is a list of rows",
        ),
        ("rows.jsonl", b"\xff\xfe", r"rows\.jsonl: not UTF-8 text \(byte 0\)"),
        (
            "rows.jsonl",
            b'{"q": "a?", "a": "a"}',
            r"rows\.jsonl:1: cannot tell the format from the keys \['a', 'q'\]",
        ),
        ("rows.csv", b'prompt,completion\na?,"a\nb?,b\n', r"rows\.csv:2: not CSV: unexpected end of data"),
        ("rows.csv", b'prompt,completion\na?,"a"b\n', r"rows\.csv:2: not CSV: ',' expected after '\"'"),
    ],
)
def test_file_that_is_not_what_its_name_promises_is_refused_at_its_line(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DataFileError, match=said):
        rows_of(tmp_path, name, content)


def test_csv_row_with_a_cell_missing_or_too_many_is_no_crash(tmp_path: Path) -> None:
    short, long = rows_of(tmp_path, "rows.csv", "prompt,completion\na?\nb?,b,c\n")
    assert '"completion" is null' in str(short.problem)
    assert long.messages[1].content == "b"


def test_csv_cell_may_be_longer_than_the_csv_module_allows_by_default(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "rows.csv", f"prompt,completion\na?,{'x' * 200_000}\n")
    assert len(row.messages[1].content) == 200_000


def test_csv_row_ends_at_line_ends_only(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "rows.csv", "prompt,completion\na\u2028b\x85c\x0bd?,yes\n")
    assert row.messages[0].content == "a\u2028b\x85c\x0bd?"


def test_digest_tells_conversations_apart_and_ignores_their_place() -> None:
    row = asked("a?", "a", 1)
    assert row.digest == asked("a?", "a", 2).digest
    assert row.digest != asked("a?", "b").digest
    assert row.digest != Row("rows.jsonl", 1, (Message("user", "a?a"),)).digest
    assert row.question_digest == asked("a?", "b").question_digest
    assert row.question_digest != asked("b?", "a").question_digest


def test_question_of_a_dialogue_is_all_before_its_last_answer() -> None:
    turns = (*asked("a?", "a").messages, *asked("b?", "b").messages)
    dialogue = Row("rows.jsonl", 1, turns)
    assert dialogue.question_digest == Row("rows.jsonl", 1, turns[:3]).question_digest
    assert dialogue.question_digest != asked("b?", "b").question_digest


questions = st.lists(st.text(max_size=4), max_size=30)
shares = st.floats(0.01, 0.99)


@given(questions, st.lists(st.text(max_size=4), max_size=30), shares)
def test_split_is_stable_when_rows_are_added(before: list[str], added: list[str], share: float) -> None:
    train, heldout = split([asked(q) for q in before], share)
    more_train, more_heldout = split([asked(q) for q in [*added, *before]], share)
    assert set(train) <= set(more_train)
    assert set(heldout) <= set(more_heldout)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.text(max_size=2)), max_size=30), shares)
def test_split_keeps_copies_of_a_question_on_one_side(pairs: list[tuple[str, str]], share: float) -> None:
    train, heldout = split([asked(question, answer) for question, answer in pairs], share)
    assert not {row.question_digest for row in train} & {row.question_digest for row in heldout}


@given(questions, shares)
def test_split_loses_no_row_and_keeps_the_order(listed: list[str], share: float) -> None:
    rows = [asked(question, number=number) for number, question in enumerate(listed)]
    train, heldout = split(rows, share)
    assert sorted([*train, *heldout], key=lambda row: row.number) == rows
    assert [row.number for row in train] == sorted(row.number for row in train)


@given(questions, shares, shares)
def test_split_with_a_larger_share_only_moves_rows_to_the_heldout_side(
    listed: list[str], one: float, other: float
) -> None:
    rows = [asked(question) for question in listed]
    small, large = (set(split(rows, share)[1]) for share in sorted((one, other)))
    assert small <= large


def test_split_holds_out_about_the_share_that_is_asked_for() -> None:
    _, heldout = split([asked(f"question {n}") for n in range(2000)], 0.1)
    four_sigma = 4 * math.sqrt(2000 * 0.1 * 0.9)
    assert abs(len(heldout) - 200) < four_sigma


def run_in(folder: Path) -> RunFile:
    tree = {"model": "m", "base_model": {"source": "org/base"}, "data": {"train": ["x"]}}
    return RunFile(folder / "run.yaml", Config.model_validate_json(json.dumps(tree)))


def touched(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [(folder / name).resolve() for name in names]


def test_files_are_found_sorted_and_once(tmp_path: Path) -> None:
    one, two, three = touched(tmp_path, "data/a.jsonl", "data/b.csv", "data/deep/c.json")
    found = find_files(run_in(tmp_path), "data.train", ["data/*.csv", "data/**/*.json", "data/[ab].*", str(one)])
    assert found == (one, two, three)


def test_files_are_found_below_a_folder_named_like_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "run [1]"
    files = touched(folder, "rows[2].jsonl", "rows2.jsonl")
    assert find_files(run_in(folder), "data.train", ["*.jsonl"]) == tuple(sorted(files))
    assert find_files(run_in(folder), "data.train", ["rows[2].jsonl"]) == (files[0],)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("*.jsonl", r"run\.yaml: data\.train: no file matches \*\.jsonl \(looked for .*\)"),
        ("notes.txt", r"data\.train: .*notes\.txt: not a data file; known kinds: \.json, \.jsonl, \.csv, \.parquet"),
        ("folder.json", r"folder\.json: not a data file"),
    ],
)
def test_pattern_without_data_files_is_refused(tmp_path: Path, pattern: str, said: str) -> None:
    touched(tmp_path, "notes.txt", "folder.json/inside")
    with pytest.raises(DataFileError, match=said):
        find_files(run_in(tmp_path), "data.train", [pattern])


def test_short_names_are_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "elsewhere"):
        files = [root / "a/rows.jsonl", root / "b/rows.jsonl"]
        assert list(short_names(files).values()) == ["a/rows.jsonl", "b/rows.jsonl"]
    assert short_names([tmp_path / "rows.jsonl"]) == {tmp_path / "rows.jsonl": "rows.jsonl"}


def test_canonical_rows_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [Row("a.jsonl", 1, CONVERSATION), Row("b.csv", 2, (), "unreadable\u2028row")]
    lines = [
        {
            "file": r.file,
            "number": r.number,
            "messages": [[m.role, m.content] for m in r.messages],
            "problem": r.problem,
        }
        for r in rows
    ]
    (tmp_path / "rows.jsonl").write_text(as_jsonl(lines), encoding="utf-8")
    assert list(read_canonical(tmp_path / "rows.jsonl")) == rows
