"""Data files: what is in them with its place, and one sentence about every file that is not what its name promises."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from loragate.config import Config, RunFile
from loragate.errors import DataFileError
from loragate.files import Side, content_digest, data_files, hub_sources, short_names
from loragate.reading import Foreign, Reading, read_shard, shards
from loragate.rows import Row

PAIR = {"prompt": "a?", "completion": "a"}


def as_json(rows: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)


def as_jsonl(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_separated(delimiter: str) -> Callable[[Sequence[Mapping[str, object]]], str]:
    def write(rows: Sequence[Mapping[str, object]]) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    return write


CONTAINERS: dict[str, Callable[[Sequence[Mapping[str, object]]], str]] = {
    "json": as_json,
    "jsonl": as_jsonl,
    "csv": as_separated(","),
    "tsv": as_separated("\t"),
}


def no_table(path: Path) -> Iterator[Mapping[str, object]]:
    raise AssertionError(path)


def no_zstd(path: Path) -> BinaryIO:
    raise AssertionError(path)


NO_FOREIGN = Foreign(no_table, no_zstd)
SHARD_ROWS = 2
"""Small, so that files of a few rows are cut."""


def read_file(path: Path, name: str, reading: Reading, foreign: Foreign = NO_FOREIGN) -> list[Row]:
    return [row for shard in shards(path, name, reading, foreign, SHARD_ROWS) for row in read_shard(shard)]


def rows_of(folder: Path, name: str, content: str | bytes, reading: Reading | None = None) -> list[Row]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return read_file(path, name, reading or Reading())


@pytest.mark.parametrize("container", CONTAINERS)
def test_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path, container: str) -> None:
    simple = [{"prompt": "a?", "completion": "a"}, {"prompt": "b?", "completion": "b"}]
    text = CONTAINERS[container](simple).replace("\r\n", "\n")
    expected = rows_of(tmp_path, f"rows.{container}", text)
    assert [row.messages[0].content for row in expected] == ["a?", "b?"]
    assert rows_of(tmp_path, f"rows.{container}", "\ufeff" + text.replace("\n", "\r\n")) == expected


@pytest.mark.parametrize("container", CONTAINERS)
def test_packed_file_holds_what_the_plain_one_does(tmp_path: Path, container: str) -> None:
    text = CONTAINERS[container]([PAIR] * 3)
    packed = rows_of(tmp_path, f"rows.{container}.gz", gzip.compress(text.encode()))
    plain = rows_of(tmp_path, f"rows.{container}", text)
    assert [(row.number, row.conversation) for row in packed] == [(row.number, row.conversation) for row in plain]
    assert packed[0].place.startswith(f"rows.{container}.gz:")


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_long_row_of_many_scripts_comes_through_whole(tmp_path: Path, container: str) -> None:
    text = "שלום مرحبا 中文 👩‍👩‍👧‍👦 \u2028 \x85 " * 4000
    (row,) = rows_of(tmp_path, f"rows.{container}", CONTAINERS[container]([{"prompt": text, "completion": "a"}]))
    assert len(text.encode()) > 100_000
    assert row.messages[0].content == text


def test_table_rows_come_from_the_table_reader(tmp_path: Path) -> None:
    foreign = Foreign(lambda _: iter([PAIR]), no_zstd)
    (row,) = read_file(tmp_path / "rows.parquet", "rows.parquet", Reading(), foreign)
    assert (row.place, row.messages[0].content) == ("rows.parquet:1", "a?")


def test_place_is_the_line_of_a_jsonl_and_the_element_of_a_json(tmp_path: Path) -> None:
    line = json.dumps(PAIR)
    jsonl = rows_of(tmp_path, "rows.jsonl", f"\n{line}\n\n  \n{line}")
    assert [row.place for row in jsonl] == ["rows.jsonl:2", "rows.jsonl:5"]
    listed = rows_of(tmp_path, "rows.json", json.dumps([PAIR, PAIR]))
    assert [row.place for row in listed] == ["rows.json:1", "rows.json:2"]


@pytest.mark.parametrize(("name", "mark"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_place_is_the_last_line_of_a_csv_row(tmp_path: Path, name: str, mark: str) -> None:
    rows = rows_of(tmp_path, name, f'prompt{mark}completion\na?{mark}a\n"b\nb?"{mark}"b"\n\n')
    assert [row.place for row in rows] == [f"{name}:2", f"{name}:4"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7", "the row is int, must be an object with named fields"),
        ("null", "the row is NoneType, must be an object with named fields"),
        ('{"prompt": "b?"}', 'not a row of format prompt_completion: "completion" is missing'),
        ('{"a": "b?", "b": "c"}', 'not a row of format prompt_completion: "prompt" is missing'),
        ('{"prompt": "b?", "prompt": "c?", "completion": "b"}', 'the key "prompt" stands twice in one object'),
        ('{"prompt": [{"role": "user", "role": "system"}]}', 'the key "role" stands twice in one object'),
    ],
)
@pytest.mark.parametrize("container", ["json", "jsonl"])
def test_faulty_row_keeps_its_place_and_takes_no_other_with_it(
    tmp_path: Path, container: str, line: str, said: str
) -> None:
    lines = [json.dumps(PAIR), line, json.dumps(PAIR)]
    text = "\n".join(lines) if container == "jsonl" else f"[{', '.join(lines)}]"
    good, bad, last = rows_of(tmp_path, f"rows.{container}", text)
    assert (good.problem, last.problem) == (None, None)
    assert said in str(bad.problem)
    assert bad.place == f"rows.{container}:2"


def test_csv_row_with_a_cell_missing_or_too_many_is_named(tmp_path: Path) -> None:
    short, long = rows_of(tmp_path, "rows.csv", "prompt,completion\na?\nb?,b,c\n")
    assert '"completion" is missing' in str(short.problem)
    assert long.problem == "the row has 3 cells, the header 2"


def test_csv_row_ends_at_line_ends_only(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "rows.csv", "prompt,completion\na\u2028b\x85c\x0bd?,yes\n")
    assert row.messages[0].content == "a\u2028b\x85c\x0bd?"


@pytest.mark.parametrize("turns", ["[]", '"hello"', "[3]", "[{}]"])
def test_broken_row_is_no_change_of_format(tmp_path: Path, turns: str) -> None:
    good = '{"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "a"}]}'
    first, bad, last = rows_of(tmp_path, "rows.jsonl", f'{good}\n{{"conversations": {turns}}}\n{good}\n')
    assert (first.problem, last.problem) == (None, None)
    assert str(bad.problem).startswith("not a row of format sharegpt: ")


def test_format_that_is_told_is_not_looked_for(tmp_path: Path) -> None:
    told = Reading("alpaca")
    (row,) = rows_of(tmp_path, "rows.jsonl", json.dumps(PAIR), told)
    assert row.problem == 'not a row of format alpaca: "instruction" is missing; it must be a text'


def test_columns_are_renamed_before_the_format_is_looked_for(tmp_path: Path) -> None:
    reading = Reading(columns={"prompt": "title", "completion": "body"})
    good, bad = rows_of(tmp_path, "rows.jsonl", '{"title": "a?", "body": "a"}\n{"title": "b?"}', reading)
    assert [message.content for message in good.messages] == ["a?", "a"]
    assert bad.problem == 'no column "body", which data.columns.completion names'


CHAT = {"messages": [{"role": "user", "content": "a?"}]}
TURNS = b'{"conversations": [{"from": "gpt", "value": "a"}]}\n{"conversations": [{"role": "user", "content": "a"}]}'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b'{"prompt": "a?"}\n{"prompt"\n', r"rows\.jsonl:2: not JSON: .* \(column 10\)"),
        ("rows.jsonl", b"[" * 100_000, r"rows\.jsonl:1: not JSON: nested too deeply"),
        ("rows.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", r"rows\.jsonl:1: not JSON: Exceeds the limit"),
        ("rows.json", b'[\n{"prompt": }]', r"rows\.json:2:12: not JSON"),
        ("rows.json", b'{"prompt": "a?"}', r"rows\.json: holds one dict; a \.json data file is a list of rows"),
        ("rows.jsonl", b"\xff\xfe", r"rows\.jsonl: not UTF-8 text \(byte 0\)"),
        ("rows.jsonl", b'{"prompt": "a?"}\n{"prompt": "\xff"}', r"rows\.jsonl: not UTF-8 text \(byte 29\)"),
        ("rows.json", b'\xef\xbb\xbf["\xff"]', r"rows\.json: not UTF-8 text \(byte 5\)"),
        ("rows.csv", b"prompt,completion\na?,\xff", r"rows\.csv: not UTF-8 text \(byte 21\)"),
        ("rows.jsonl", b'{"q": "a?", "a": "a"}', r"rows\.jsonl:1: cannot tell the format from the keys \['a', 'q'\]"),
        ("rows.csv", b'prompt,completion\na?,"a\nb?,b\n', r"rows\.csv:2: not CSV: unexpected end of data"),
        ("rows.tsv", b'prompt\tcompletion\na?\t"a"b\n', r"rows\.tsv:2: not TSV: '\t' expected after '\"'"),
        ("rows.csv", b"prompt,prompt\na?,a\n", r'rows\.csv:1: the column "prompt" stands twice in the header'),
        ("rows.jsonl.gz", b"{}", r"rows\.jsonl\.gz: cannot be read: Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], r"rows\.jsonl\.gz: cannot be read: "),
        (
            "rows.jsonl",
            as_jsonl([PAIR, PAIR, CHAT]).encode(),
            r"rows\.jsonl:3: the rows change their format here, from prompt_completion to messages",
        ),
        ("rows.jsonl", TURNS, r"rows\.jsonl:2: the rows change their format here, from sharegpt to conversations"),
    ],
)
def test_file_that_is_not_what_its_name_promises_is_refused_at_its_line(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DataFileError, match=said):
        rows_of(tmp_path, name, content)


def run_in(folder: Path, *train: object, **data: Any) -> RunFile:
    tree = {"model": "m", "base_model": {"source": "org/base"}, "data": {"train": train, **data}}
    return RunFile(folder / "run.yaml", Config.model_validate_json(json.dumps(tree)))


def touched(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [(folder / name).resolve() for name in names]


def found(run: RunFile, side: Side = "train") -> list[Path]:
    """The files of one side."""
    return [Path(file.path) for file in data_files(run).of(side)]


def test_files_are_found_sorted_and_once(tmp_path: Path) -> None:
    one, two, three = touched(tmp_path, "data/a.jsonl.gz", "data/b.tsv", "data/deep/c.json")
    run = run_in(tmp_path, "data/*.tsv", "data/**/*.json", "data/[ab].*", str(one))
    assert found(run) == [one, two, three]
    assert data_files(run).heldout_share == 0.1


def test_files_are_found_below_a_folder_named_like_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "run [1]"
    files = touched(folder, "rows[2].jsonl", "rows2.jsonl")
    assert found(run_in(folder, "*.jsonl")) == sorted(files)
    run = run_in(folder, "rows[2].jsonl", heldout=["rows2.jsonl"])
    assert (found(run), found(run, "heldout")) == ([files[0]], [files[1]])
    assert data_files(run).heldout_share == 0


def test_a_folder_means_every_data_file_in_it(tmp_path: Path) -> None:
    one, two, _ = touched(tmp_path, "data/a.csv", "data/b.parquet", "data/readme.md")
    assert found(run_in(tmp_path, "data")) == [one, two]


def test_an_mlx_lm_folder_means_its_splits(tmp_path: Path) -> None:
    test, train = touched(tmp_path, "data/test.jsonl", "data/train.jsonl")
    for run, heldout in ((run_in(tmp_path, "data"), [test]), (run_in(tmp_path, "data", heldout=0.2), [])):
        assert (found(run), found(run, "heldout")) == ([train], heldout)
    (valid,) = touched(tmp_path, "data/valid.jsonl")
    assert found(run_in(tmp_path, "data"), "heldout") == [valid]
    assert found(run_in(tmp_path, "data", heldout=["data/test.jsonl"]), "heldout") == [test]


def test_entry_says_weight_format_and_columns_of_its_files_and_the_later_one_counts(tmp_path: Path) -> None:
    touched(tmp_path, "a.jsonl", "b.jsonl")
    special: Any = {"source": "b.jsonl", "weight": 0.5, "format": "alpaca", "columns": {"output": "said"}}
    a, b = data_files(run_in(tmp_path, "*.jsonl", special, format="text")).files
    assert (a.name, a.weight, a.format, a.columns) == ("a.jsonl", 1.0, "text", ())
    assert (b.name, b.weight, b.format, b.columns) == ("b.jsonl", 0.5, "alpaca", (("output", "said"),))


def test_general_and_protected_files_are_sides_of_their_own(tmp_path: Path) -> None:
    a, b, c = touched(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    run = run_in(tmp_path, "a.jsonl", general=["b.jsonl"], holdout_against=["c.jsonl"])
    assert (found(run), found(run, "general"), found(run, "protected")) == ([a], [b], [c])
    with pytest.raises(DataFileError, match=r"data\.holdout_against: no file matches d\.jsonl"):
        data_files(run_in(tmp_path, "a.jsonl", holdout_against=["d.jsonl"]))


def test_name_that_is_nowhere_and_looks_like_an_id_is_a_data_set_of_a_hub(tmp_path: Path) -> None:
    touched(tmp_path, "data/rows/a.jsonl")
    asked: Any = {"source": "data/rows", "split": "train", "revision": "abc"}
    run = run_in(tmp_path, "org/name", "data/rows", asked)
    assert [entry.source for entry in hub_sources(run)] == ["org/name", "data/rows"]
    assert hub_sources(run)[1].revision == "abc"
    with pytest.raises(DataFileError, match=r"no file matches data/none\.jsonl"):
        data_files(run_in(tmp_path, "data/none.jsonl"))


def test_content_digest_depends_on_every_byte_and_not_on_names_or_order() -> None:
    digest = content_digest({"a": "01", "b": "02"})
    assert content_digest({"x/b": "02", "y/a": "01"}) == digest
    assert content_digest({"a": "01", "b": "03"}) != digest
    assert content_digest({"a": "01", "b": "02", "c": "02"}) != digest


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("*.jsonl", r"run\.yaml: data\.train: no file matches \*\.jsonl \(looked for .*\)"),
        ("notes.txt", r"data\.train: .*notes\.txt: not a data file; known kinds: \.json, \.jsonl, \.csv, \.tsv"),
        ("*.json", r"folder\.json: not a data file"),
        ("empty", r"data\.train: no file matches empty"),
    ],
)
def test_pattern_without_data_files_is_refused(tmp_path: Path, pattern: str, said: str) -> None:
    touched(tmp_path, "notes.txt", "folder.json/inside", "empty/notes.txt")
    with pytest.raises(DataFileError, match=said):
        data_files(run_in(tmp_path, pattern))


def test_short_names_are_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "elsewhere"):
        files = [root / "a/rows.jsonl", root / "b/rows.jsonl"]
        assert list(short_names(files).values()) == ["a/rows.jsonl", "b/rows.jsonl"]
    assert short_names([tmp_path / "rows.jsonl"]) == {tmp_path / "rows.jsonl": "rows.jsonl"}
