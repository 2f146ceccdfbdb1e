"""Releases under an orchestrator: a server with a worker by the file's own commands, and `serve` on one box."""

import json
import re
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import (
    MARK,
    ROOT,
    Done,
    ask,
    free_port,
    loragate,
    marked,
    program,
    run,
    serving,
    started,
    wait_until,
    write_run,
)
from prefect import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from sealed_home import make_home
from signers import new_key, write_key

from flows.approval import ask_for_approval

QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@dataclass(frozen=True, slots=True)
class Server:
    """A Prefect server with the deployments of deployments/prefect.yaml, a worker, and a run file to release."""

    api: str
    settings: dict[str, str]
    run_file: Path

    def prefect(self, *arguments: str) -> Done:
        done = run([program("prefect"), *arguments], ROOT, **self.settings)
        assert done.code == 0, done.said
        return done

    def release(self, *parameters: str) -> dict[str, Any]:
        """Start release/manual on the run file and return its flow run once that has ended."""
        given = [f"config={self.run_file}", *parameters]
        options = [text for parameter in given for text in ("-p", parameter)]
        name = f"test-{secrets.token_hex(4)}"
        self.prefect("deployment", "run", "release/manual", "--flow-run-name", name, *options)
        wait_until(lambda: self.flow_run(name)["state_type"] in {"COMPLETED", "FAILED", "CRASHED"}, 400, "its end")
        return self.flow_run(name)

    def flow_run(self, name: str) -> dict[str, Any]:
        (found,) = ask(f"{self.api}/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
        return dict(found)

    def tables(self, flow_run: dict[str, Any]) -> dict[str, Any]:
        """Table artifacts of a flow run by key."""
        question = {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}, "type": {"any_": ["table"]}}}
        return {artifact["key"]: artifact for artifact in ask(f"{self.api}/artifacts/filter", question)}


def head_commands() -> list[list[str]]:
    """The commands in the head comment of deployments/prefect.yaml, without what is explained beside them."""
    text = (ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8")
    lines = re.findall(r"^#   \.venv/bin/(prefect [^#\n]*)", text, flags=re.MULTILINE)
    return [line.split() for line in lines]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_home: Path) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("deployment"), free_port()
    api = f"http://127.0.0.1:{port}/api"
    settings = {**QUIET, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": api}
    start, pool, deploy, worker, _ = head_commands()
    here = Server(api, settings, write_run(folder, tiny_model))
    shutil.copytree(new_home / "prefect", folder / "prefect")
    command = [program(start[0]), *start[1:], "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, f"{api}/health", folder, **settings):
        here.prefect(*pool[1:])
        here.prefect(*deploy[1:])
        with started([program(worker[0]), *worker[1:]], ROOT, folder / "worker.log", **settings):
            yield here


def test_deployment_releases_on_a_worker_and_its_gates_are_seen_through_the_api(server: Server) -> None:
    flow_run = server.release()
    assert flow_run["state_type"] == "COMPLETED", flow_run["state"]["message"]
    tables = server.tables(flow_run)
    gates = ("data", "plan", "preflight", "training", "quality", "merge", "gguf-q8-0")
    assert set(tables) == {f"tiny-{gate}-gate" for gate in gates}
    for table in tables.values():
        rows = json.loads(table["data"]) if isinstance(table["data"], str) else table["data"]
        assert rows
        assert {"rule", "passed", "detail"} <= set(rows[0])
        assert all(row["passed"] for row in rows)
    (journal,) = server.run_file.parent.glob("home/record/*/journal.jsonl")
    closed = json.loads(journal.read_text(encoding="utf-8").splitlines()[-1])["value"]
    assert (closed["outcome"], closed["version"]) == ("released", "1")


def test_refused_deployment_run_fails_with_the_verdict_as_its_message(server: Server) -> None:
    flow_run = server.release('overrides=["gates.quality.max_perplexity_ratio=0.0001"]')
    assert flow_run["state_type"] == "FAILED"
    assert "quality gate" in flow_run["state"]["message"]
    assert "perplexity_ratio" in flow_run["state"]["message"]
    assert {"tiny-data-gate", "tiny-quality-gate"} <= set(server.tables(flow_run))


def test_deployments_are_a_weekly_schedule_a_manual_one_and_the_asking_for_approvals(server: Server) -> None:
    found = {entry["name"]: entry for entry in ask(f"{server.api}/deployments/filter", {})}
    assert set(found) == {"weekly", "manual", "ask"}
    (weekly,) = found["weekly"]["schedules"]
    assert (weekly["schedule"]["cron"], weekly["schedule"]["timezone"], weekly["active"]) == ("0 3 * * 1", "UTC", True)
    assert found["manual"]["schedules"] == found["ask"]["schedules"] == []


@dataclass(frozen=True, slots=True)
class Asking:
    """A sealed release that one approver has to sign, asked about at a server."""

    api: str
    home: Path

    def ask(self, name: str, ended: list[State[Any]]) -> None:
        """Run the flow to its end."""
        with temporary_settings({PREFECT_API_URL: self.api}):
            walk = ask_for_approval.with_options(flow_run_name=name)
            ended.append(walk("tiny@1", str(self.home), poll_seconds=1, return_state=True))

    def answered(self, name: str, typed: str, meanwhile: Callable[[], None]) -> State[Any]:
        """How the flow ends, if somebody does something while it waits, and then types something."""
        ended: list[State[Any]] = []
        waiting = threading.Thread(target=self.ask, args=(name, ended), daemon=True)
        waiting.start()
        question = {"flow_runs": {"name": {"any_": [name]}, "state": {"type": {"any_": ["PAUSED"]}}}}
        wait_until(lambda: bool(ask(f"{self.api}/flow_runs/filter", question)), 180, "the pause")
        (found,) = ask(f"{self.api}/flow_runs/filter", question)
        keys = found["state"]["state_details"]["run_input_keyset"]
        shown = str(ask(f"{self.api}/flow_runs/{found['id']}/input/{keys['description']}"))
        assert "loragate approve tiny@1 --key" in shown
        assert "What is typed here is no approval" in shown
        meanwhile()
        ask(f"{self.api}/flow_runs/{found['id']}/resume", {"run_input": {"signed": typed}})
        waiting.join(60)
        return ended[0]


def test_what_is_typed_into_the_window_is_no_approval_and_what_is_signed_is(server: Server, tmp_path: Path) -> None:
    key = new_key()
    write_key(tmp_path / "ann", key)
    (tmp_path / "approvers.yaml").write_text(json.dumps([{"name": "Ann", "key": key.public}]), encoding="utf-8")
    home = make_home(tmp_path, record={"approvals": 1, "approvers": "approvers.yaml"})
    asking = Asking(server.api, home.root)
    typed = asking.answered(f"test-{secrets.token_hex(4)}", "yes", lambda: None)
    assert typed.is_failed()
    assert "BlockedError: tiny@1: 1 approval needed, 0 count; to approve, Ann: " in str(typed.message)

    def sign() -> None:
        done = loragate("approve", "tiny@1", "--key", "ann", "--home", str(home.root), cwd=tmp_path)
        assert done.code == 0, done.said

    signed = asking.answered(f"test-{secrets.token_hex(4)}", "no", sign)
    assert signed.is_completed(), signed.message
    told = signed.result()
    assert (told["granted"], told["digest"], told["counted"][0]["name"]) == (True, home.digests[0], "Ann")


def test_serve_registers_its_schedule_and_ends_on_interrupt_with_everything_it_started(
    tmp_path: Path, tiny_model: Path
) -> None:
    path, mark = write_run(tmp_path, tiny_model), secrets.token_hex(8)
    log = tmp_path / "serve.log"
    command = [program("loragate"), "serve", "run.yaml", "--cron", "30 2 * * 4", "--timezone", "Europe/Paris"]
    with started(command, tmp_path, log, **{MARK: mark}) as process:
        api = f"{address(process, log)}/api"
        wait_until(lambda: bool(ask(f"{api}/deployments/filter", {})), 240, "a deployment")
        (deployment,) = ask(f"{api}/deployments/filter", {})
        (schedule,) = deployment["schedules"]
        assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("30 2 * * 4", "Europe/Paris")
        assert schedule["active"]
        assert deployment["parameters"]["config"] == str(path)
        assert marked(mark)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        wait_until(lambda: not marked(mark), 60, "the end of every process")
    assert "Traceback" not in log.read_text(encoding="utf-8")
    assert process.returncode in {0, 130}


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that `serve` tells."""

    def told() -> re.Match[str] | None:
        return re.search(r"watch it at (\S+) ", log.read_text(encoding="utf-8"))

    wait_until(lambda: process.poll() is not None or told() is not None, 240, "an address")
    found = told()
    assert found is not None, log.read_text(encoding="utf-8")
    return found[1]
