"""The project as a user starts it: real processes, real servers, run files on the tiny model, nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qa_pairs import pairs, write_jsonl

from loragate.home import Home
from loragate.orchestrator import prefect_server, prepare_environment

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
MARK = "LORAGATE_TEST_MARK"
"""Environment variable that every process of one command inherits, whatever session or parent it moves to."""

COMMAND_SECONDS = 900
"""Longest wait for one command: several times what the longest takes on an idle machine."""

TIED = """
import os, signal, sys
from loragate.child import die_with_parent
die_with_parent()
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Becomes another program that the kernel ends with the tests, whatever ends those; one that Ctrl-C reaches, also where
the tests run in the background of a shell, which has its programs ignore it."""


def tied(command: Sequence[str]) -> list[str]:
    """A command that does not outlive the tests."""
    return [sys.executable, "-c", TIED, *command]


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one line of JSON that is all of stdout."""
        assert self.stdout.count("\n") == 1, self.stdout + self.stderr
        return json.loads(self.stdout)

    @property
    def said(self) -> str:
        """Everything a user sees."""
        return self.stdout + self.stderr


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who has set nothing: what the tests themselves set does not reach the command."""
    ours = ("PREFECT_", "MLFLOW_", "LORAGATE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def program(name: str) -> str:
    """A program of the environment that the tests run in."""
    return str(BIN / name)


def run(command: Sequence[str], cwd: Path, **more: str) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        tied(command),
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def loragate(*arguments: str, cwd: Path, **more: str) -> Done:
    """Run `loragate` to its end."""
    return run([program("loragate"), *arguments], cwd, **more)


GENERAL = [{"prompt": f"How many legs have {n} cats?", "completion": f"They have {4 * n} legs."} for n in range(2, 12)]
"""Rows of data.general: drawing answers from the base for each release would take longer than the rest of it."""


def write_run(folder: Path, model: Path, **sections: dict[str, object]) -> Path:
    """Write rows and a run file on the tiny model with a home of its own; it passes every gate.

    Sections given by keyword replace keys of the sections written here.
    """
    write_jsonl(folder / "train.jsonl", pairs(24))
    write_jsonl(folder / "heldout.jsonl", pairs(12, start=100))
    write_jsonl(folder / "general.jsonl", GENERAL)
    content: dict[str, dict[str, object]] = {
        "base_model": {"source": str(model)},
        "data": {
            "train": ["train.jsonl"],
            "heldout": ["heldout.jsonl"],
            "general": ["general.jsonl"],
            "max_tokens": 96,
        },
        "train": {"learning_rate": 5e-3, "epochs": 2, "checkpoint_steps": 2, "batch_size": 4, "dtype": "float32"},
        "gates": {
            "quality": {"num_samples": 2, "sample_tokens": 8, "min_stop_share": 0.0},
            "plan": {"max_learning_rate": 5e-3},
            "gguf": {"min_stop_share": 0.0, "max_perplexity_ratio_q4_k_m": 1.5},
        },
        "export": {"gguf": ["q8_0"]},
    }
    for name, keys in sections.items():
        content[name] = content.get(name, {}) | keys
    path = folder / "run.yaml"
    path.write_text(json.dumps({"model": "tiny", "home": "home"} | content), encoding="utf-8")
    return path


def marked(mark: str) -> list[str]:
    """Command lines of the living processes that carry a mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended in the meantime
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
    return found


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: It does not within `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: Sequence[str], cwd: Path, log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own while the context lasts; none of that session outlives it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            tied(command),
            cwd=cwd,
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)


@contextmanager
def serving(command: Sequence[str], health: str, cwd: Path, **more: str) -> Iterator[None]:
    """Run a server while the context lasts, from its first answer at `health` on."""
    log = cwd / "server.log"
    with started(command, cwd, log, **more) as process:
        wait_until(lambda: process.poll() is not None or answers(health), 180, f"an answer of {health}")
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield


@contextmanager
def prefect_for(root: Path) -> Iterator[str]:
    """Set up a home as the command does and run a Prefect server for it while the context lasts; yields its address."""
    home = Home(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(home.prefect))
        prepare_environment(home, verbose=False)
        with prefect_server(home) as ready:
            yield ready()


def answers(url: str) -> bool:
    """Whether a server answers at an address."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - ours
            return True
    except OSError:
        return False


def ask(url: str, question: object = None) -> Any:
    """Ask a JSON API: GET without a question, POST with one."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - ours
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - ours
        return json.load(response)
