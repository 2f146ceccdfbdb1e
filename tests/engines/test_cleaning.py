"""A cleaned copy: trimmed, without copies and rejected rows; every row keeps its keys, and nothing else is changed."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import Raw, read, write

from loragate.child import ignore
from loragate.engines import cleaning
from loragate.errors import ConfigError
from loragate.files import DataFile
from loragate.record import Fixed
from loragate.row_work import FixRows


def reject(place: str, rule: str = "no_secrets", severity: str = "refuse") -> Raw:
    return {"side": "train", "place": place, "rule": rule, "severity": severity, "reason": ""}


def fixed(folder: Path, files: list[DataFile], rejects: list[Raw]) -> Fixed:
    listed = write(folder / "rejects.jsonl", rejects)
    return cleaning.fix(FixRows(tuple(files), str(listed), str(folder / "out")), ignore)


def rows_file(folder: Path, name: str, rows: list[Any], side: Any = "train") -> DataFile:
    return DataFile(str(write(folder / name, rows)), name, side)


def test_rows_are_trimmed_copies_left_out_and_rejects_dropped(tmp_path: Path) -> None:
    rows = [
        {"prompt": " a? ", "completion": "a\n", "id": 7},
        {"prompt": "a?", "completion": "a", "id": 8},
        {"prompt": "b?", "completion": "secret"},
        {"prompt": "c?", "completion": "c", "tags": [" x "]},
        {"prompt": "only a warning", "completion": "d"},
    ]
    rejects = [reject("a.jsonl:3"), reject("a.jsonl:5", "no_contacts", "warn"), reject("a.jsonl:2", "no_duplicates")]
    found = fixed(tmp_path, [rows_file(tmp_path, "a.jsonl", rows)], rejects)
    assert found == Fixed(3, 2, 1, 1, (str(tmp_path / "out" / "a.jsonl"),))
    assert read(tmp_path / "out" / "a.jsonl") == [
        {"prompt": "a?", "completion": "a", "id": 7},
        {"prompt": "c?", "completion": "c", "tags": ["x"]},
        {"prompt": "only a warning", "completion": "d"},
    ]


def test_every_row_is_kept_or_counted_as_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n % 7}?", "completion": "x"} for n in range(30)]
    found = fixed(tmp_path, [rows_file(tmp_path, "a.jsonl", rows)], [reject("a.jsonl:2")])
    assert found.kept + found.duplicates + found.rejected == 30
    assert (found.kept, found.rejected) == (7, 1)


def test_copies_are_told_side_by_side_and_protected_files_are_not_copied(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "a"}]
    sides = [("a.jsonl", "train"), ("b.jsonl", "heldout"), ("c.jsonl", "protected")]
    found = fixed(tmp_path, [rows_file(tmp_path, name, rows, side) for name, side in sides], [])
    assert (found.kept, found.duplicates) == (2, 0)
    assert [Path(file).name for file in found.files] == ["a.jsonl", "b.jsonl"]


def test_tables_become_json_lines_of_the_same_columns(tmp_path: Path) -> None:
    rows = [{"instruction": "Grün ", "output": "ja", "stars": 3}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = fixed(tmp_path, [DataFile(str(tmp_path / "a.parquet"), "deep/a.parquet", "train")], [])
    assert found.files == (str(tmp_path / "out" / "deep" / "a.parquet.jsonl"),)
    assert read(Path(found.files[0])) == [{"instruction": "Grün", "output": "ja", "stars": 3}]


def test_cleaned_copy_needs_no_cleaning(tmp_path: Path) -> None:
    rows = [{"prompt": f" {n % 5} ", "completion": f"\t{n % 3}"} for n in range(40)]
    first = fixed(tmp_path / "1", [rows_file(tmp_path, "a.jsonl", rows)], [])
    again = fixed(tmp_path / "2", [DataFile(first.files[0], "a.jsonl", "train")], [])
    assert (again.kept, again.trimmed, again.duplicates, again.rejected) == (first.kept, 0, 0, 0)
    assert Path(again.files[0]).read_bytes() == Path(first.files[0]).read_bytes()


def test_folder_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--fix .*out: something is there already; choose another folder"):
        fixed(tmp_path, [rows_file(tmp_path, "a.jsonl", [{"prompt": "a", "completion": "b"}])], [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_text_of_any_script_is_written_as_it_is(tmp_path: Path) -> None:
    fixed(tmp_path, [rows_file(tmp_path, "a.jsonl", [{"prompt": "緑?", "completion": "ja\u2028ja"}])], [])
    text = (tmp_path / "out" / "a.jsonl").read_text(encoding="utf-8")
    assert "緑?" in text
    assert json.loads(text)["completion"] == "ja\u2028ja"
