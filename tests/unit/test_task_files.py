"""Task files: what of the harness's format is taken, and that code, hubs and missing files are refused first."""

import json
from pathlib import Path

import pytest

from loragate import task_files as reading
from loragate.config import load
from loragate.errors import ConfigError
from loragate.task_files import TaskFile, task_files

TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: [data/sums.jsonl]}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
"""
RUN = "model: m\nbase_model: {source: a/b}\ndata: {train: [a.jsonl]}\n"


def read(folder: Path, task: str = TASK, entry: str = "") -> tuple[TaskFile, ...]:
    """The task files of a run file that names one task, in a folder of its own."""
    (folder / "tasks" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "data" / "sums.jsonl").write_text(json.dumps({"question": "1 + 1?"}) + "\n", encoding="utf-8")
    (folder / "tasks" / "sums.yaml").write_text(task, encoding="utf-8")
    run = folder / "run.yaml"
    run.write_text(f"{RUN}gates: {{quality: {{tasks: [{{file: tasks/sums.yaml{entry}}}]}}}}\n", encoding="utf-8")
    return task_files(load(run))


def test_no_tasks_are_no_task_files(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    assert task_files(load(tmp_path / "run.yaml")) == ()


def test_data_lie_beside_the_task_file_and_keys_of_the_run_file_are_kept(tmp_path: Path) -> None:
    (task,) = read(tmp_path, entry=", metric: acc, limit: 5, chat_template: false")
    assert task.config["dataset_kwargs"] == {"data_files": {"test": [str(tmp_path / "tasks" / "data" / "sums.jsonl")]}}
    assert (task.name, task.metric, task.limit, task.chat) == ("sums", "acc", 5, False)
    (task,) = read(tmp_path, TASK.replace("{test: [data/sums.jsonl]}", "data/sums.jsonl"))
    assert task.config["dataset_kwargs"] == {"data_files": {"train": [str(tmp_path / "tasks" / "data" / "sums.jsonl")]}}
    assert (task.metric, task.limit, task.chat) == ("", 0, True)


def test_digest_is_of_what_is_asked_and_not_of_where_it_lies(tmp_path: Path) -> None:
    (here,), (there,) = read(tmp_path / "a"), read(tmp_path / "b")
    assert here.digest == there.digest
    changed = [
        read(tmp_path / "c", TASK.replace("{{question}}", "Q: {{question}}")),
        read(tmp_path / "d", entry=", limit: 5"),
        read(tmp_path / "e", entry=", metric: acc_norm"),
        read(tmp_path / "f", entry=", chat_template: false"),
    ]
    data = tmp_path / "b" / "tasks" / "data" / "sums.jsonl"
    data.write_text('{"question": "2 + 2?"}\n', encoding="utf-8")
    changed.append(task_files(load(tmp_path / "b" / "run.yaml")))
    assert len({here.digest, *(task.digest for (task,) in changed)}) == 6


def test_words_mean_what_they_mean_to_the_harness(tmp_path: Path) -> None:
    (task,) = read(tmp_path, f"{TASK}generation_kwargs: {{do_sample: no}}\n")
    assert task.config["generation_kwargs"] == {"do_sample": False}


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (TASK + "process_docs: !function work.clean\n", "tasks/sums.yaml:9: !function runs Python"),
        (TASK + "class: !!python/name:os.system\n", "not YAML"),
        (TASK + "process_results: work.py\n", "process_results: unknown here, or runs code"),
        (TASK + "include: other.yaml\n", "include: unknown here, or runs code or reads other files"),
        (TASK + "unsafe_code: true\n", "unsafe_code: unknown here"),
        (TASK + "metric_list: [{metric: bleurt, hf_evaluate: true}]\n", "bleurt: hf_evaluate fetches code from a hub"),
        (TASK + "metric_list: [acc]\n", "metric_list: each entry is a mapping"),
        (TASK.replace("dataset_path: json", "dataset_path: openai/gsm8k"), "data must be local files"),
        (TASK.replace("data_files:", "streaming: true, data_files:"), "dataset_kwargs.streaming: unknown here"),
        (TASK.replace("data/sums.jsonl", "https://a.b/c.jsonl"), "https://a.b/c.jsonl: no such file"),
        (TASK.replace("data/sums.jsonl", "gone.jsonl"), "gone.jsonl: no such file (looked for "),
        (TASK.replace("{data_files: {test: [data/sums.jsonl]}}", "{}"), "data_files: name local files"),
        (TASK.replace("test_split: test\n", ""), "test_split: required, but missing"),
        (TASK.replace("multiple_choice", "essay"), 'output_type: found "essay", allowed: multiple_choice'),
        (TASK.replace("task: sums", "task: [a, b]"), 'task: found ["a", "b"], wanted one name'),
        ("- a\n", "a task file is a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_code_hubs_and_missing_data_are_refused_with_the_place(tmp_path: Path, task: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, task)
    assert fault in str(error.value)
    assert "gates.quality.tasks: tasks/sums.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (", max_drp: 0.1", 'gates.quality.tasks.0.max_drp: unknown key (did you mean "max_drop"?)'),
        (", max_drop: -1", "gates.quality.tasks.0.max_drop: found -1"),
        (", limit: 1", "gates.quality.tasks.0.limit: found 1"),
        (", min_value: .nan", "gates.quality.tasks.0.min_value"),
        ("}, {file: tasks/sums.yaml", "gates.quality.tasks: two are called sums; give their files other names"),
        ("}, {file: tasks/gone.yaml", "gates.quality.tasks: tasks/gone.yaml: cannot be read: No such file"),
    ],
)
def test_entries_that_cannot_be_meant_are_refused(tmp_path: Path, entry: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, entry=entry)
    assert fault in str(error.value)


def test_without_the_harness_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LIBRARY", "a_library_that_is_not_here")
    with pytest.raises(ConfigError, match=r"gates\.quality\.tasks needs lm-eval: pip install 'loragate\[eval\]'$") as e:
        read(tmp_path)
    assert e.value.exit_code == 2
