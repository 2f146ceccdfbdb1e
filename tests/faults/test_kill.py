"""A release that is ended in the middle of training: nothing of it is left, and the same command goes on to the bit.

Every command carries a mark in its environment, which all its processes inherit: children, the fork server and the
Prefect server are found by it wherever they have moved.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import MARK, Done, environment, loragate, marked, program, tied, wait_until, write_run
from mlflow.tracking import MlflowClient

from loragate.refs import digest_manifest, manifest

STEPS = 180
"""24 rows, 4 a step, 30 epochs: some seconds of training, a checkpoint every second step."""

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_home: Path) -> Path:
    """Shared by all cases, so that only training is done anew for each; every case has a seed of its own."""
    folder = tmp_path_factory.mktemp("kill")
    write_run(folder, tiny_model, train={"epochs": 30, "checkpoint_steps": 2, "batch_size": 4, "dtype": "float32"})
    for home in ("home", "other"):
        shutil.copytree(new_home, folder / home)
    return folder


def release(folder: Path, seed: int, home: str) -> Done:
    return loragate("release", "run.yaml", "--json", *options(seed), "--home", home, cwd=folder)


def options(seed: int) -> tuple[str, ...]:
    return ("--set", f"train.seed={seed}")


def interrupted(folder: Path, seed: int, end: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str, list[str]]:
    """Start a release, end it as soon as training has left a checkpoint; return exit code, stderr, what still lives."""
    mark = secrets.token_hex(8)
    before = set(folder.glob("home/*/*"))
    process = subprocess.Popen(
        tied([program("loragate"), "release", "run.yaml", "--json", *options(seed), "--home", "home"]),
        cwd=folder,
        env=environment(**{MARK: mark}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or training(folder, before), 300, "a checkpoint on record")
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert len(marked(mark)) >= 4, "the command, its Prefect server, the fork server and a training child"
        end(process)
        _, said = process.communicate(timeout=300)
        limit = time.monotonic() + 60
        while marked(mark) and time.monotonic() < limit:
            time.sleep(0.1)
        return process.returncode, said, marked(mark)
    finally:
        for line in marked(mark):
            os.kill(int(line.split()[0]), signal.SIGKILL)
        process.communicate()


def training(folder: Path, before: set[Path]) -> bool:
    """Whether a training that was not there before has left a checkpoint and told MLflow of a step."""
    new = set(folder.glob("home/*/*")) - before
    journals = [path / "journal.jsonl" for path in new if path.parent.name == "record"]
    told = any('"event": "tracked"' in path.read_text(encoding="utf-8") for path in journals)
    return told and any(checkpoint for path in new for checkpoint in path.glob("checkpoint-*.pt"))


def trained(folder: Path, home: str, seed: int) -> dict[str, Any]:
    """What the run store says about the training with a seed."""
    for path in folder.glob(f"{home}/runs/train-*/done.json"):
        marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if marker["recipe"]["settings"]["train"]["seed"] == seed:
            return marker
    raise AssertionError(f"no finished training with seed {seed}")


def adapter(done: Done) -> str:
    """Digest of a release's adapter, without the run store's marker, which says that it was resumed."""
    files = manifest(Path(done.json["artifacts"]["adapter"]), without=frozenset({"done.json"}))
    assert "adapter_model.safetensors" in files
    return digest_manifest(files)


def mlflow_status(folder: Path, seed: int) -> list[tuple[str, str]]:
    """Verdict and status of the home's MLflow runs with a seed, oldest first."""
    client = MlflowClient(f"sqlite:///{folder / 'home' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    wanted = f"params.`train.seed` = '{seed}'"
    runs = client.search_runs([experiment.experiment_id], wanted, order_by=["attributes.start_time ASC"])
    return [(run.data.tags["loragate.verdict"], run.info.status) for run in runs]


def test_terminated_release_leaves_nothing(folder: Path) -> None:
    code, said, alive = interrupted(folder, 2, lambda process: process.terminate())
    assert alive == []
    assert code not in {0, 3}
    assert "Traceback" not in said
    assert mlflow_status(folder, 2) == [("failed", "FAILED")]


def test_interrupt_of_the_terminal_leaves_nothing_and_says_how_to_go_on(folder: Path) -> None:
    code, said, alive = interrupted(folder, 3, lambda process: os.killpg(process.pid, signal.SIGINT))
    assert alive == []
    assert code == 130, said
    assert "the same command goes on where this one stopped" in said
    assert "Traceback" not in said
    assert mlflow_status(folder, 3) == [("failed", "FAILED")]


def test_killed_release_leaves_nothing_and_the_same_command_ends_with_the_same_bytes(folder: Path) -> None:
    code, _, alive = interrupted(folder, 1, lambda process: process.kill())
    assert code == -signal.SIGKILL
    assert alive == []

    resumed, whole = release(folder, 1, "home"), release(folder, 1, "other")
    assert resumed.code == 0, resumed.said
    assert whole.code == 0, whole.said
    assert 0 < trained(folder, "home", 1)["value"]["resumed_from"] < STEPS
    assert trained(folder, "other", 1)["value"]["resumed_from"] == 0
    assert len(trained(folder, "home", 1)["value"]["curve"]) == STEPS
    assert trained(folder, "home", 1)["value"]["curve"] == trained(folder, "other", 1)["value"]["curve"]
    assert adapter(resumed) == adapter(whole)
    assert not Path(resumed.json["artifacts"]["adapter"]).with_suffix(".scratch").exists()
    assert mlflow_status(folder, 1) == [("killed", "KILLED"), ("released", "FINISHED")]
