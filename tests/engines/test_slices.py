"""Slices: read from rows of every format, beside what is taught and never in it; and tokenizers that are not alike."""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prepared import describe, facts_of, render, render_files
from pyarrow import parquet
from qa_pairs import pairs, write_jsonl

from loragate.child import ignore
from loragate.engines.tokenizers_alike import compare
from loragate.work import CompareTokenizers

QUESTION, ANSWER = "What is rain?", "Water."
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
FORMATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS},
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "conversations": {"conversations": TURNS},
    "alpaca": {"instruction": QUESTION, "output": ANSWER},
    "prompt_completion": {"prompt": QUESTION, "completion": ANSWER},
    "question_answer": {"question": QUESTION, "answer": ANSWER},
    "text": {"text": f"{QUESTION} {ANSWER}"},
}


def lines(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_any_format_keeps_its_slice_and_is_taught_as_without_it(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    raw = FORMATS[name]
    heldout = [raw | {"slice": " weather/ünï <b>\n"}, raw | {"slice": None}, raw | {"slice": "  "}, raw]
    named, *bare = lines(render(describe(tiny_model), tmp_path, pairs(2), heldout) / "heldout.jsonl")
    assert [named["slice"], *(row["slice"] for row in bare)] == ["weather/ünï <b>", "", "", ""]
    apart = {"slice", "place"}
    for row in bare:
        assert {key: row[key] for key in row.keys() - apart} == {key: named[key] for key in named.keys() - apart}


def test_slices_are_read_from_csv_and_parquet_too(tiny_model: Path, tmp_path: Path) -> None:
    rows = [row | {"slice": name} for row, name in zip(pairs(3), ("a", "", "b"), strict=True)]
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "heldout.parquet")
    folder = render_files(describe(tiny_model), tmp_path, tmp_path / "train.csv", tmp_path / "heldout.parquet")
    for side in ("train", "heldout"):
        assert [row["slice"] for row in lines(folder / f"{side}.jsonl")] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [(7, '"slice" is int, must be a text'), ("x" * 101, '"slice" has 101 characters, at most 100 allowed in a name')],
)
def test_what_is_no_name_is_a_fault_of_its_row(name: Any, problem: str, tiny_model: Path, tmp_path: Path) -> None:
    heldout: list[Mapping[str, Any]] = [*pairs(1, start=9), pairs(1)[0] | {"slice": name}]
    rows = render(describe(tiny_model), tmp_path, pairs(2), heldout)
    assert len(lines(rows / "heldout.jsonl")) == 1
    problems = [fact["problem"] for fact in facts_of(rows) if fact["side"] == "heldout"]
    assert problems == ["", f"not a row of format prompt_completion: {problem}"]


def test_tokenizers_are_alike_or_the_first_difference_is_named(tiny_model: Path, tmp_path: Path) -> None:
    base = describe(tiny_model)
    write_jsonl(tmp_path / "probes.jsonl", [])
    rows = render(base, tmp_path, pairs(2), pairs(2, start=50))

    def difference(folder: Path) -> str:
        return compare(CompareTokenizers(base, str(folder), str(rows / "probes.jsonl")), ignore).difference

    assert difference(tiny_model) == ""
    other = tmp_path / "template"
    shutil.copytree(tiny_model, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "{# #}", encoding="utf-8")
    assert difference(other) == "another chat template"
    for name, key, expected in (
        ("merges", "merges", "other tokens for"),
        ("vocabulary", "vocab", "another vocabulary"),
    ):
        other = tmp_path / name
        shutil.copytree(tiny_model, other)
        path = other / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        if key == "merges":
            content["model"]["merges"] = content["model"]["merges"][:1000]
        else:
            vocabulary = content["model"]["vocab"]
            vocabulary["water"], vocabulary["Ġwater"] = vocabulary.get("Ġwater", 1), vocabulary.get("water", 2)
        path.write_text(json.dumps(content), encoding="utf-8")
        assert difference(other).startswith(expected)
