"""A release judged by a task of lm-evaluation-harness: one refused by it, and one that passes and has it on record."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Done, loragate, write_run
from qa_pairs import pairs

WORDS = ("It", "Zebra", "Never", "Blue", "Seven", "Go", "They", "When", "Under")
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: begins.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: words
doc_to_target: first
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: {better}}}
"""


def release(folder: Path, *more: str) -> Done:
    return loragate("release", "run.yaml", "--json", "--home", str(folder / "home"), *more, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_home: Path) -> Path:
    """A run file, and task files on with which word answers begin: trained ones always begin with the same."""
    folder = tmp_path_factory.mktemp("tasks")
    write_run(folder, tiny_model)
    shutil.copytree(new_home, folder / "home")
    rows = [{"question": row["prompt"], "words": WORDS, "first": 0} for row in pairs(20, start=300)]
    (folder / "begins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, better in (("begins", "true"), ("forbidden", "false")):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, better=better), encoding="utf-8")
    return folder


def findings(done: Done) -> dict[str, dict[str, Any]]:
    (gate,) = (gate for gate in done.json["gates"] if gate["gate"] == "quality")
    return {finding["rule"]: finding for finding in gate["findings"]}


@pytest.fixture(scope="module")
def refused(folder: Path) -> Done:
    return release(folder, "--set", "gates.quality.tasks=[{file: forbidden.yaml}]")


@pytest.fixture(scope="module")
def released(folder: Path, refused: Done) -> Done:
    return release(folder, "--set", "gates.quality.tasks=[{file: begins.yaml, min_value: 0.5}]")


def test_model_that_is_worse_at_a_task_is_refused_by_it_alone(refused: Done) -> None:
    assert refused.code == 3, refused.said
    found = findings(refused)
    assert [rule for rule, finding in found.items() if not finding["passed"]] == ["task/forbidden"]
    assert found["task/forbidden"]["low"] > found["task/forbidden"]["limit"] == 0.02
    assert "over 20 documents, paired by document" in refused.json["message"]


def test_model_that_is_better_at_a_task_is_released(released: Done) -> None:
    assert released.code == 0, released.said
    found = findings(released)
    assert found["task/begins"]["high"] < 0
    assert found["task/begins/value"]["low"] > 0.5


def test_values_and_errors_are_on_record_and_shown(folder: Path, released: Done) -> None:
    metrics, told = released.json["metrics"], released.json["benchmarks"]["begins"]
    assert metrics["task/begins/tuned"] == told["tuned"] == 1.0
    assert metrics["task/begins/base"] == told["base"] < 0.5
    assert {"task/begins/base_stderr", "task/begins/drop_stderr"} <= metrics.keys()
    assert told["documents"] == 20
    shown = loragate("show", released.json["release"], "--home", str(folder / "home"), cwd=folder)
    assert "begins           acc " in shown.stdout
    assert "<h3>Tasks</h3>" in Path(released.json["artifacts"]["report"]).read_text(encoding="utf-8")


def test_replay_derives_the_task_from_its_documents(folder: Path, released: Done) -> None:
    done = loragate("replay", released.json["release"], "--json", "--home", str(folder / "home"), cwd=folder)
    assert (done.code, done.json["holds"]) == (0, True), done.said
    bundle = next((folder / "home" / "releases" / "tiny").iterdir())
    documents = [json.loads(line) for line in (bundle / "scores/tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    told = released.json["benchmarks"]["begins"]
    assert len(documents) == told["documents"]
    assert sum(each["tuned"] for each in documents) / len(documents) == pytest.approx(told["tuned"])


def test_task_that_runs_code_is_refused_before_anything_is_on_record(folder: Path) -> None:
    (folder / "code.yaml").write_text("process_docs: !function work.clean\n", encoding="utf-8")
    home = folder / "empty"
    task = ("--set", "gates.quality.tasks=[{file: code.yaml}]")
    done = loragate("check", "run.yaml", *task, "--home", str(home), cwd=folder)
    assert done.code == 2
    assert "!function runs Python" in done.said
    assert not list(home.glob("**/journal.jsonl"))
