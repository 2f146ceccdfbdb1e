"""MLflow, really run on an embedded store: an attempt has one run and one version, however often they are asked for."""

import json
import shutil
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from commands import wait_until, write_run
from mlflow.entities import DatasetInput, LoggedModel
from mlflow.tracking import MlflowClient

from loragate.attempt import Attempt
from loragate.child import Progress
from loragate.config import load, plain
from loragate.engines import tracking
from loragate.engines.system_metrics import LAST_SECONDS, sampled
from loragate.home import find_home
from loragate.ladder import Rung
from loragate.perplexity import Nll
from loragate.record import Closed, Opened, Outcome, Tracked, now
from loragate.refs import digest_text, reference
from loragate.row_sets import RowSet
from loragate.verdicts import Finding, conclude


@dataclass(frozen=True, slots=True)
class Place:
    """A run file whose home holds an embedded store."""

    run_file: Path

    def attempt(self) -> Attempt:
        """Open an attempt as the road does."""
        run = load(self.run_file)
        attempt = Attempt(run, find_home(None, run))
        opened = Opened(attempt.id, run.config.model, now(), plain(run.config), {"python": "3"})
        attempt.note("opened", "", opened)
        return attempt

    @property
    def client(self) -> MlflowClient:
        """The store itself."""
        run = load(self.run_file)
        return MlflowClient(find_home(None, run).tracking_uri)


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, new_home: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = write_run(tmp_path, tiny_model)
    shutil.copytree(new_home, find_home(None, load(path)).root)
    return Place(path)


def fill(attempt: Attempt, folder: Path) -> None:
    """Put on record what a road would: inputs, a rung, seconds, a verdict, artifacts."""
    for name in ("adapter", "great_expectations", "merged"):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}.txt").write_text(name, encoding="utf-8")
        attempt.note("artifact", name, reference(folder / name))
    (folder / "model-f16.gguf").write_bytes(b"GGUF")
    attempt.note("artifact", "gguf_f16", reference(folder / "model-f16.gguf"))
    attempt.note("input", "data/train.jsonl", digest_text("train"))
    attempt.note("input", "base_model", digest_text("base"))
    sets = RowSet("train", {"train.jsonl": digest_text("train")}, 0.0, 24, 960)
    attempt.note("row_set", "train", sets)
    attempt.note("rung", "baseline", Rung("baseline", Nll(0.0, 4)))
    attempt.note("seconds", "train", 1.25)
    attempt.note("verdict", "data", conclude("data", [Finding("rows", True, "24 rows")]))


def artifacts(client: MlflowClient, run: str, path: str = "") -> set[str]:
    """Every file of a run."""
    found: set[str] = set()
    for entry in client.list_artifacts(run, path):
        found |= artifacts(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def history(place: Place, run: str, name: str) -> list[int]:
    """Steps at which a metric was measured."""
    return [point.step for point in place.client.get_metric_history(run, name)]


def models_of(place: Place, run: str) -> list[LoggedModel]:
    """Logged models that a run made."""
    experiment = place.client.get_run(run).info.experiment_id
    return list(place.client.search_logged_models([experiment], f"source_run_id = '{run}'"))


def inputs_of(place: Place, run: str) -> list[DatasetInput]:
    inputs = place.client.get_run(run).inputs
    assert inputs is not None
    return list(inputs.dataset_inputs)


def test_a_run_opened_twice_is_one_run(place: Place) -> None:
    attempt = place.attempt()
    first, second = tracking.open_run(attempt), tracking.open_run(attempt)
    experiment = place.client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = place.client.search_runs([experiment.experiment_id])
    assert first == second == attempt.journal.read().tracked
    assert (run.info.run_id, run.info.run_name, run.info.status) == (first.run_id, attempt.id, "RUNNING")


def test_a_run_s_parameters_are_the_whole_run_file(place: Place) -> None:
    run = place.client.get_run(tracking.open_run(place.attempt()).run_id)
    assert run.data.params["model"] == "tiny"
    assert run.data.params["train.learning_rate"] == "0.005"
    assert run.data.params["data.max_tokens"] == "96"
    assert "'min_stop_share': 0.0" in run.data.params["gates.quality"]


def test_metrics_arrive_live_with_their_steps(place: Place) -> None:
    attempt = place.attempt()
    report = tracking.live_metrics(attempt)
    report(Progress(1, 3, "steps", {"loss": 2.5, "grad_norm": 1.0}))
    report(Progress(2, 3, "steps", {"loss": 1.5, "heldout_loss": 1.75}))
    report(Progress(3, 3, "steps"))
    run = tracking.open_run(attempt).run_id
    history = [(m.step, m.value) for m in place.client.get_metric_history(run, "train/loss")]
    assert history == [(1, 2.5), (2, 1.5)]
    assert [(m.step, m.value) for m in place.client.get_metric_history(run, "train/heldout_loss")] == [(2, 1.75)]


def test_a_loss_that_is_not_finite_does_not_end_the_tracking(place: Place) -> None:
    attempt = place.attempt()
    report = tracking.live_metrics(attempt)
    report(Progress(1, 2, "steps", {"loss": float("nan")}))
    report(Progress(2, 2, "steps", {"loss": float("inf")}))
    run = tracking.open_run(attempt).run_id
    assert [m.step for m in place.client.get_metric_history(run, "train/loss")] == [1, 2]


def test_an_upload_brings_everything_and_a_second_one_changes_nothing(place: Place, tmp_path: Path) -> None:
    attempt = place.attempt()
    fill(attempt, tmp_path / "made")
    record = attempt.journal.read()
    tracked = tracking.upload(attempt, record)
    client, once = place.client, place.client.get_run(tracked.run_id)
    files = artifacts(client, tracked.run_id)
    assert tracking.upload(attempt, attempt.journal.read()) == tracked
    twice = client.get_run(tracked.run_id)
    assert (
        once.data.metrics
        == twice.data.metrics
        == {"baseline_ppl": 1.0, "ladder/perplexity": 1.0, "seconds/train": 1.25}
    )
    assert (once.data.params, once.data.tags) == (twice.data.params, twice.data.tags)
    assert len(inputs_of(place, tracked.run_id)) == 2
    assert history(place, tracked.run_id, "baseline_ppl") == history(place, tracked.run_id, "ladder/perplexity") == [0]
    assert sorted(m.name for m in models_of(place, tracked.run_id)) == ["adapter", "gguf_f16", "merged"]
    assert (
        artifacts(client, tracked.run_id)
        == files
        == {
            "model/adapter/adapter.txt",
            "model/gguf/model-f16.gguf",
            "data_gate/great_expectations.txt",
            "run.yaml",
            "config.json",
            "environment.json",
        }
    )
    assert twice.data.tags["gate.data"] == "data gate: pass (1 rules)"
    assert twice.data.tags["digest.adapter"] == record.artifacts["adapter"].digest


def test_data_sets_and_files_carry_their_use_their_rows_and_their_full_digest(place: Place, tmp_path: Path) -> None:
    attempt = place.attempt()
    fill(attempt, tmp_path / "made")
    tracked = tracking.upload(attempt, attempt.journal.read())
    found = {
        i.dataset.name: (i.dataset, {tag.key: tag.value for tag in i.tags}) for i in inputs_of(place, tracked.run_id)
    }
    digest = attempt.journal.read().row_sets["train"].digest
    assert {name: tags["sha256"] for name, (_, tags) in found.items()} == {
        "train": digest,
        "train.jsonl": digest_text("train"),
    }
    assert {tags["mlflow.data.context"] for _, tags in found.values()} == {"training"}
    data_set = found["train"][0]
    assert data_set.digest == digest[:32]
    assert json.loads(str(data_set.profile)) == {"num_rows": 24, "num_tokens": 960, "num_files": 1}
    assert json.loads(data_set.source)["files"] == {"train.jsonl": digest_text("train")}
    run = place.client.get_run(tracked.run_id)
    assert run.data.tags["digest.base_model"] == digest_text("base")


def test_a_data_set_of_ten_thousand_files_is_taken(place: Place) -> None:
    attempt = place.attempt()
    files = {f"{'long/' * 8}{number:05}.jsonl": digest_text(str(number)) for number in range(10_000)}
    attempt.note("row_set", "train", RowSet("train", files, 0.1, 10, 20))
    tracked = tracking.upload(attempt, attempt.journal.read())
    (found,) = inputs_of(place, tracked.run_id)
    assert json.loads(found.dataset.source)["more_files"] == 9_600


def test_models_of_an_attempt_that_was_refused_are_logged_and_not_ready(place: Place, tmp_path: Path) -> None:
    attempt = place.attempt()
    fill(attempt, tmp_path / "made")
    attempt.note("verdict", "merge", conclude("merge", [Finding("ties", False, "a tie is broken")]))
    tracked = tracking.upload(attempt, attempt.journal.read())
    found = models_of(place, tracked.run_id)
    assert {(m.name, m.model_type, str(m.status)) for m in found} == {
        ("adapter", "adapter", "FAILED"),
        ("merged", "merged", "FAILED"),
        ("gguf_f16", "gguf", "FAILED"),
    }
    assert {m.tags["loragate.verdict"] for m in found} == {"refused"}


def test_a_model_is_pending_until_its_files_are_in_the_run(place: Place, tmp_path: Path) -> None:
    attempt = place.attempt()
    fill(attempt, tmp_path / "made")
    (tmp_path / "made" / "model-f16.gguf").rename(tmp_path / "model-f16.gguf")
    with pytest.raises(OSError, match=r"model-f16\.gguf"):
        tracking.upload(attempt, attempt.journal.read())
    run_id = tracking.open_run(attempt).run_id
    assert {str(m.status) for m in models_of(place, run_id)} == {"PENDING"}
    (tmp_path / "model-f16.gguf").rename(tmp_path / "made" / "model-f16.gguf")
    tracking.upload(attempt, attempt.journal.read())
    found = models_of(place, run_id)
    assert sorted((m.name, str(m.status)) for m in found) == [(n, "FAILED") for n in ("adapter", "gguf_f16", "merged")]
    outputs = place.client.get_run(run_id).outputs
    assert outputs is not None
    assert sorted(each.model_id for each in outputs.model_outputs) == sorted(m.model_id for m in found)


def test_machine_is_sampled_while_a_training_runs_and_no_longer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    attempt = place.attempt()
    with sampled(attempt):
        run_id = tracking.open_run(attempt).run_id
        wait_until(lambda: len(history(place, run_id, "system/cpu_utilization_percentage")) >= 2, 120, "two samples")
    steps = history(place, run_id, "system/cpu_utilization_percentage")
    assert steps == list(range(len(steps)))
    assert not [thread for thread in threading.enumerate() if thread.name == "system metrics"]
    memory = place.client.get_metric_history(run_id, "system/system_memory_usage_percentage")
    assert all(0 < point.value <= 100 for point in memory)


def test_no_sample_of_a_check_of_sabotage_or_where_it_is_switched_off(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, switch in (("checks", "true"), ("sabotage", "true"), ("record", "false")):
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", switch)
        attempt = place.attempt()
        attempt.kind = kind  # type: ignore[assignment]
        with sampled(attempt):
            assert not [thread for thread in threading.enumerate() if thread.name == "system metrics"]


def test_training_does_not_wait_for_an_mlflow_that_does_not_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    attempt = place.attempt()
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes the call and says nothing
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        attempt.note("tracked", "", Tracked("0" * 32, uri))
        record = attempt.config.record.model_copy(update={"tracking_uri": uri})
        attempt.run = replace(attempt.run, config=attempt.config.model_copy(update={"record": record}))
        with sampled(attempt):
            began = time.monotonic()
        assert time.monotonic() - began < LAST_SECONDS + 5


def test_one_digest_registered_twice_is_one_version_without_an_alias(place: Place, tmp_path: Path) -> None:
    attempt, again = place.attempt(), place.attempt()
    fill(attempt, tmp_path / "made")
    tracked = tracking.upload(attempt, attempt.journal.read())
    digest = digest_text("release")
    assert tracking.register(attempt, digest) == tracking.register(attempt, digest) == "1"
    assert tracking.register(again, digest) == "1"
    client = place.client
    (version,) = client.search_model_versions("name = 'tiny'")
    assert (version.run_id, version.tags["loragate.digest"]) == (tracked.run_id, digest)
    assert client.get_registered_model("tiny").aliases == {}
    served = client.get_model_version_download_uri("tiny", "1")
    assert served.endswith(f"{tracked.run_id}/artifacts/model")


def test_another_digest_is_the_next_version(place: Place) -> None:
    assert tracking.register(place.attempt(), digest_text("one")) == "1"
    assert tracking.register(place.attempt(), digest_text("two")) == "2"


def test_a_run_that_a_killed_attempt_left_open_is_marked_killed(place: Place) -> None:
    dead = tracking.open_run(place.attempt())
    alive = tracking.open_run(place.attempt())
    client = place.client
    left = client.get_run(dead.run_id)
    assert (left.info.status, left.data.tags["loragate.verdict"]) == ("KILLED", "killed")
    assert client.get_run(alive.run_id).info.status == "RUNNING"


def test_a_run_of_another_home_is_left_alone(place: Place) -> None:
    other = tracking.open_run(place.attempt())
    place.client.set_tag(other.run_id, "loragate.home", "another home")
    tracking.open_run(place.attempt())
    assert place.client.get_run(other.run_id).info.status == "RUNNING"


@pytest.mark.parametrize(("outcome", "status"), [("released", "FINISHED"), ("refused", "FAILED"), ("failed", "FAILED")])
def test_a_closed_run_carries_verdict_journal_and_report(place: Place, outcome: Outcome, status: str) -> None:
    attempt = place.attempt()
    attempt.home.report(attempt.id).write_text("<html></html>", encoding="utf-8")
    attempt.note("closed", "", Closed(outcome, "what happened", now()))
    tracking.close_run(attempt, attempt.journal.read())
    run = place.client.get_run(tracking.open_run(attempt).run_id)
    assert (run.info.status, run.data.tags["loragate.verdict"]) == (status, outcome)
    assert run.data.tags["mlflow.note.content"].startswith(f"## {outcome.upper()}\n\nwhat happened\n\n")
    assert "**report.html**" in run.data.tags["mlflow.note.content"]
    assert artifacts(place.client, run.info.run_id) == {"journal.jsonl", "report.html"}
