"""Real runs of lm-evaluation-harness on the tiny model: its values and errors, documents' scores, nothing fetched."""

import json
import math
import socket
from pathlib import Path
from statistics import stdev
from typing import Any, NoReturn

import datasets
import huggingface_hub
import pytest
from prepared import describe

from loragate.benchmark import Score, compared
from loragate.child import ignore
from loragate.config import load
from loragate.engines import benchmarks
from loragate.errors import ConfigError
from loragate.task_files import SitTasks, task_files
from loragate.work import Base, Model

CHOICE = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
"""
WRITTEN = """\
task: numbers
dataset_path: csv
dataset_kwargs: {data_files: numbers.csv}
test_split: train
fewshot_split: train
num_fewshot: 1
output_type: generate_until
doc_to_text: "{{question | upper}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: digits, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
"""
LIKELY = (
    CHOICE.replace("colours\n", "likely\n", 1)
    .replace("multiple_choice", "loglikelihood")
    .replace("doc_to_choice: choices\ndoc_to_target: answer", 'doc_to_target: "{{choices[answer]}}"')
)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo for the tests after these what the engine shuts for the rest of its process."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", huggingface_hub.constants.HF_HUB_OFFLINE)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", datasets.config.HF_HUB_OFFLINE)
    monkeypatch.setenv("DISABLE_MULTIPROC", "")


def sit(folder: Path, base: Base, *tasks: str, **entry: Any) -> tuple[Score, ...]:
    """Have the tiny model sit task files, each with the same keys in the run file."""
    colours = [{"question": f"What is {n}?", "choices": ["red", "blue", "green"], "answer": n % 3} for n in range(12)]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in colours), encoding="utf-8")
    (folder / "numbers.csv").write_text("question,answer\n" + "".join(f"what is {n},{n}\n" for n in range(6)))
    for number, task in enumerate(tasks):
        (folder / f"{number}.yaml").write_text(task, encoding="utf-8")
    entries = [{"file": f"{number}.yaml", **entry} for number in range(len(tasks))]
    run = {"model": "m", "base_model": {"source": "./m"}, "data": {"train": ["a.jsonl"]}}
    (folder / "run.yaml").write_text(json.dumps({**run, "gates": {"quality": {"tasks": entries}}}), encoding="utf-8")
    asked = task_files(load(folder / "run.yaml"))
    return benchmarks.sit(SitTasks(Model(base, dtype="float32"), asked, 1000, 0), ignore)


def test_a_model_sits_choices_answers_and_likelihoods_and_errors_are_the_harness_s(tmp_path: Path, base: Base) -> None:
    choice, written, likely = sit(tmp_path, base, CHOICE, WRITTEN, LIKELY)
    assert (choice.metric, choice.documents, choice.higher_is_better) == ("acc,none", 12, True)
    assert set(choice.scores) <= {0.0, 1.0}
    assert choice.value == pytest.approx(sum(choice.scores) / 12)
    assert choice.standard_error == pytest.approx(stdev(choice.scores) / math.sqrt(12))
    assert (written.metric, written.documents, len(written.scores)) == ("exact_match,digits", 6, 6)
    assert (likely.metric, likely.scores, likely.higher_is_better) == ("perplexity,none", (), False)
    assert likely.value > 1
    assert likely.standard_error > 0  # the harness's bootstrap
    assert compared(choice, choice).drop_error == 0
    assert not compared(likely, likely).paired


def test_the_same_seed_gives_the_same_scores_and_a_limit_the_first_documents(tmp_path: Path, base: Base) -> None:
    (whole,), (again,) = sit(tmp_path, base, CHOICE), sit(tmp_path, base, CHOICE)
    (few,) = sit(tmp_path, base, CHOICE, limit=5, metric="acc_norm")
    assert whole == again
    assert (few.metric, few.documents) == ("acc_norm,none", 5)
    assert few.asked != whole.asked


def test_metric_may_be_named_with_its_filter(tmp_path: Path, base: Base) -> None:
    (score,) = sit(tmp_path, base, WRITTEN, metric="exact_match,whole")
    assert score.metric == "exact_match,whole"


def test_chat_template_decides_what_is_asked(tmp_path: Path, base: Base) -> None:
    (chat,), (plain,) = sit(tmp_path, base, CHOICE), sit(tmp_path, base, CHOICE, chat_template=False)
    assert chat.asked != plain.asked


def test_nothing_is_fetched(tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*address: object) -> NoReturn:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert len(sit(tmp_path, base, CHOICE, WRITTEN)) == 2


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (CHOICE.replace("{{question}}", "{{ question.__class__.__mro__ }}"), "SecurityError"),
        (CHOICE + "metric_list: [{metric: bleurt}]\n", "metric bleurt is none of the harness's own"),
        (CHOICE.replace("test_split: test", "test_split: exam"), "exam"),
        (CHOICE.replace("{{question}}", "{{frage}}"), "'frage' is undefined"),
    ],
)
def test_a_task_that_does_not_fit_is_named_before_a_model_is_loaded(
    tmp_path: Path, base: Base, task: str, fault: str
) -> None:
    with pytest.raises(ConfigError, match=r"gates\.quality\.tasks: colours: ") as error:
        sit(tmp_path, base, task)
    assert fault in str(error.value)


def test_a_metric_that_the_task_does_not_have_is_refused_with_those_it_has(tmp_path: Path, base: Base) -> None:
    with pytest.raises(ConfigError, match="it has no metric f1; it has acc,none, acc_norm,none"):
        sit(tmp_path, base, CHOICE, metric="f1")
