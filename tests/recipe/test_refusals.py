"""Refusals as a user meets them: the exit code, what is wrong and where, and never a traceback.

All cases share one home and one Prefect server, and with them whatever the run store has already made.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Done, loragate, prefect_for, write_run
from mlflow.tracking import MlflowClient
from qa_pairs import pairs, write_jsonl

WITHOUT_STOP = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with a run file that passes, and the home and server that all cases share."""

    folder: Path
    home: Path
    api: str
    model: Path

    def loragate(self, *arguments: str) -> Done:
        return loragate(*arguments, "--home", str(self.home), cwd=self.folder, PREFECT_API_URL=self.api)


@dataclass(frozen=True, slots=True)
class Shared:
    """The home and the server that all cases share."""

    home: Path
    api: str


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, new_home: Path) -> Iterator[Shared]:
    home = tmp_path_factory.mktemp("shared") / "home"
    shutil.copytree(new_home, home)
    with prefect_for(home) as api:
        yield Shared(home, api)


@pytest.fixture
def place(shared: Shared, tmp_path: Path, tiny_model: Path) -> Place:
    write_run(tmp_path, tiny_model)
    return Place(tmp_path, shared.home, shared.api, tiny_model)


def rewrite(folder: Path, **sections: dict[str, Any]) -> None:
    """Replace keys of the run file's sections."""
    path = folder / "run.yaml"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {k: content.get(k, {}) | v for k, v in sections.items()}), encoding="utf-8")


def without_answer(place: Place) -> None:
    rows = pairs(24)
    rows[4]["completion"] = "  "
    del rows[16]["completion"]
    write_jsonl(place.folder / "train.jsonl", rows)


def roles_out_of_order(place: Place) -> None:
    asked = [("user", "What is rain?"), ("user", "Well?"), ("assistant", "Water.")]
    turns = [[("user", f"What is {n}?"), ("assistant", f"It is {n}.")] for n in range(8)]
    rows = [{"messages": [{"role": r, "content": c} for r, c in row]} for row in [*turns, asked]]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place.folder / "train.jsonl").write_text(text, encoding="utf-8")
    held = [
        {"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": "So."}]} for n in "ab"
    ]
    (place.folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")


def too_few_tokens(place: Place) -> None:
    rewrite(place.folder, data={"max_tokens": 40})


def heldout_from_training(place: Place) -> None:
    write_jsonl(place.folder / "heldout.jsonl", pairs(10, start=100) + pairs(3, start=7))


def template_without_stop(place: Place) -> None:
    model = place.folder / "model"
    shutil.copytree(place.model, model)
    (model / "chat_template.jinja").write_text(WITHOUT_STOP, encoding="utf-8")
    rewrite(place.folder, base_model={"source": "model"})


NO_ANSWER = {"train.format": "train.jsonl:17", "train.answer_not_empty": "train.jsonl:5"}
LEAKED = {"heldout.not_in_training_rows": "heldout.jsonl:11"}
CUT = {"train.stop_token_supervised": "train.jsonl:1", "train.not_truncated": "train.jsonl:1"}
NO_STOP = {"train.roles": "train.jsonl:9", "train.stop_token_supervised": "train.jsonl:1"}


@pytest.mark.parametrize(
    ("spoils", "expected"),
    [
        ((without_answer, heldout_from_training), NO_ANSWER | LEAKED),
        ((too_few_tokens,), CUT),
        ((roles_out_of_order, template_without_stop), NO_STOP),
    ],
)
def test_data_that_cannot_teach_is_refused_by_rule_and_row(
    place: Place, spoils: tuple[Callable[[Place], None], ...], expected: dict[str, str]
) -> None:
    for spoil in spoils:
        spoil(place)
    done = place.loragate("check", "run.yaml", "--json")
    assert done.code == 3, done.said
    assert "Traceback" not in done.said
    assert done.json["verdict"] == "refused"
    ((gate, status, findings),) = ((gate["gate"], gate["status"], gate["findings"]) for gate in done.json["gates"])
    assert (gate, status) == ("data", "fail")
    broken = {finding["rule"]: finding["detail"] for finding in findings if not finding["passed"]}
    for rule, row in expected.items():
        assert row in broken[rule]
        assert rule in done.json["message"]


def test_refusal_is_told_to_a_person_by_rule_and_row(place: Place) -> None:
    without_answer(place)
    done = place.loragate("check", "run.yaml")
    assert done.code == 3
    assert done.stdout.startswith("REFUSED  tiny\n")
    lines = done.stdout.splitlines()
    (rule,) = (number for number, line in enumerate(lines) if line.split()[:1] == ["answer_not_empty"])
    assert lines[rule].split()[1:4] == ["FAIL", "1", "0"]
    assert lines[rule + 2].strip() == "train.jsonl:5"
    assert "Traceback" not in done.said
    for name in ("data docs", "rejected rows", "report"):
        (path,) = (line.removeprefix(name).strip() for line in lines if line.startswith(f"{name}  "))
        assert Path(path).is_file()


def test_cleaned_copy_of_refused_data_passes(place: Place) -> None:
    without_answer(place)
    done = place.loragate("check", "run.yaml", "--json", "--fix", "clean")
    assert done.code == 3, done.said
    clean = place.folder / "clean"
    files = [str(clean / f"{side}.jsonl") for side in ("train", "heldout")]
    assert done.json["fixed"] == {"kept": 34, "trimmed": 0, "duplicates": 0, "rejected": 2, "files": files}
    rewrite(place.folder, data={"train": ["clean/train.jsonl"], "heldout": ["clean/heldout.jsonl"]})
    assert place.loragate("check", "run.yaml").code == 0
    again = place.loragate("check", "run.yaml", "--fix", "clean")
    assert again.code == 2
    assert "clean: something is there already; choose another folder" in again.stderr


def test_rejected_rows_are_dropped_up_to_the_ceiling_where_the_run_file_says_so(place: Place) -> None:
    without_answer(place)
    drop = ("--set", "gates.data.on_reject=drop", "--set", "gates.data.max_dropped_share=0.1")
    done = place.loragate("check", "run.yaml", "--json", *drop)
    assert done.code == 0, done.said
    findings, _ = (gate["findings"] for gate in done.json["gates"])
    told = {finding["rule"]: finding["detail"] for finding in findings}
    assert told["train.dropped"] == "training rows: share dropped (2 of 24) is 0.08333, at most 0.1 allowed"
    assert told["train.rows"] == "training rows: 22 rows, at least 2 required"
    refused = place.loragate("check", "run.yaml", "--json", *drop[:3], "gates.data.max_dropped_share=0.05")
    assert refused.code == 3
    assert "train.dropped" in refused.json["message"]


def test_training_leaves_out_what_was_dropped(place: Place) -> None:
    without_answer(place)
    drop = ("--set", "gates.data.on_reject=drop", "--set", "gates.data.max_dropped_share=0.1")
    done = place.loragate("release", "run.yaml", "--json", *drop, "--set", "model=dropped")
    assert done.code == 0, done.said
    (kept,) = place.home.glob("runs/kept-*/train.jsonl")
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 22


def test_language_and_protected_files_of_the_run_file_are_obeyed(place: Place) -> None:
    row = pairs(1, start=3)[0]
    write_jsonl(place.folder / "bench.jsonl", [{"prompt": row["prompt"], "completion": "Something else."}])
    rewrite(place.folder, data={"holdout_against": ["bench.jsonl"], "language": "de"})
    done = place.loragate("check", "run.yaml", "--json")
    assert done.code == 3, done.said
    assert "train.not_in_protected" in done.json["message"]
    assert "train.jsonl:4: asks what bench.jsonl:1 asks" in done.json["message"]
    wrong = place.loragate("check", "run.yaml", "--set", "data.language=xx")
    assert (wrong.code, "data.language: found xx, allowed: " in wrong.stderr) == (2, True)


def test_a_card_without_what_the_run_file_requires_is_refused_before_training(place: Place) -> None:
    said = ("model=carded", "card.limits=Makes up names.", "card.required=[limits, contact, evaluation]")
    done = place.loragate("release", "run.yaml", "--json", *(part for each in said for part in ("--set", each)))
    assert done.code == 3, done.said
    (gate,) = done.json["gates"]
    assert (gate["gate"], gate["status"]) == ("card", "fail")
    assert {f["rule"]: f["passed"] for f in gate["findings"]} == {"limits": True, "contact": False, "evaluation": True}
    assert "refused by the card gate: contact: card.required asks for it and it is empty; set card.contact" in done.said
    assert set(done.json["seconds"]) == {"base"}


@pytest.fixture(scope="module")
def refused(shared: Shared, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Done:
    """A release whose learning rate breaks the model."""
    folder = tmp_path_factory.mktemp("refused")
    write_run(folder, tiny_model)
    rate = ("--set", "train.learning_rate=100", "--set", "gates.plan.max_usable_rate=100")
    arguments = ("release", "run.yaml", "--json", *rate, "--home", str(shared.home))
    return loragate(*arguments, cwd=folder, PREFECT_API_URL=shared.api)


def test_training_that_breaks_the_model_is_refused_by_a_gate_after_it(refused: Done) -> None:
    assert refused.code == 3, refused.said
    assert "Traceback" not in refused.said
    assert refused.json["verdict"] == "refused"
    assert refused.json["version"] is None
    last = refused.json["gates"][-1]
    assert last["gate"] in {"training", "quality"}
    assert last["status"] == "fail"
    broken = [finding["rule"] for finding in last["findings"] if not finding["passed"]]
    assert broken
    assert broken[0] in refused.json["message"]


def test_refused_release_has_a_failed_mlflow_run_and_a_report(refused: Done, shared: Shared) -> None:
    report = Path(refused.json["artifacts"]["report"])
    assert refused.json["attempt"] in report.read_text(encoding="utf-8")
    client = MlflowClient(f"sqlite:///{shared.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["loragate.verdict"] == "refused"
    assert {"report.html", "journal.jsonl"} <= {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert client.search_model_versions("name = 'tiny'") == []


def missing_data_file(place: Place) -> None:
    (place.folder / "heldout.jsonl").unlink()


def data_not_json(place: Place) -> None:
    with (place.folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "What is rain?", completion: "Water."}\n')


def no_such_model(place: Place) -> None:
    rewrite(place.folder, base_model={"source": "./models/none"})


def gguf_that_is_none(place: Place) -> None:
    (place.folder / "model.gguf").write_bytes(b"GGUG" + bytes(200))
    rewrite(place.folder, base_model={"source": "model.gguf"})


def unknown_key(place: Place) -> None:
    rewrite(place.folder, train={"learning_rat": 1e-3})


def wrong_type(place: Place) -> None:
    rewrite(place.folder, train={"epochs": "two"})


def missing_run_file(place: Place) -> None:
    (place.folder / "run.yaml").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unknown_key, ["train.learning_rat: unknown key", '"learning_rate"']),
        (wrong_type, ["train.epochs", "two"]),
        (missing_run_file, ["run.yaml: no such run file"]),
        (missing_data_file, ["run.yaml: data.heldout: no file matches heldout.jsonl"]),
        (data_not_json, ["train.jsonl:25: not JSON"]),
        (no_such_model, ["base_model.source ./models/none: no such file or folder"]),
        (gguf_that_is_none, ["base_model.source", "model.gguf: cannot be loaded as a chat model"]),
    ],
)
def test_wrong_configuration_is_one_paragraph_that_names_it_and_leaves_no_attempt(
    place: Place, spoil: Callable[[Place], None], said: list[str]
) -> None:
    before = {path.name for path in place.home.glob("record/*")}
    spoil(place)
    done = place.loragate("release", "run.yaml", "--json")
    assert done.code == 2, done.said
    assert done.stdout == ""
    message = done.stderr[done.stderr.index("loragate: ") :]
    for part in said:
        assert part in message
    assert "\n\n" not in message
    assert "Traceback" not in done.stderr
    assert {path.name for path in place.home.glob("record/*")} == before
