"""Child processes: a value, an error of ours, or a failed step; and none is left when the caller is gone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from loragate.child import Progress, call, run_tool
from loragate.errors import DataFileError, StepError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


def test_value_comes_back_as_it_was(log: Path) -> None:
    value = {"rows": (1, 2.5, None), "text": "緑", "many": b"x" * 1_000_000}
    assert call("work_for_children:echo", value, log=log, fresh=True) == value


def test_fresh_child_is_another_process_without_torch(log: Path) -> None:
    identity = call("work_for_children:identify", None, log=log, fresh=True)
    assert isinstance(identity, tuple)
    process, has_torch = identity
    assert process != os.getpid()
    assert not has_torch
    assert not psutil.pid_exists(process)


def test_progress_arrives_in_order_and_before_the_value(log: Path) -> None:
    seen: list[Progress] = []
    assert call("work_for_children:count", 3, log=log, report=seen.append, fresh=True) == "done"
    expected = [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert seen == [Progress(done, 3, "steps", {"loss": loss}) for done, loss in expected]


def test_output_goes_to_the_log_and_nowhere_else(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for word in ("one", "two"):
        call("work_for_children:speak", word, log=log, fresh=True)
    assert log.read_text(encoding="utf-8").split("\n") == ["out: one", "err: one", "out: two", "err: two", ""]
    assert capfd.readouterr() == ("", "")


def test_error_of_ours_passes_through_as_itself(log: Path) -> None:
    with pytest.raises(DataFileError, match=r"^rows\.jsonl:3: not JSON$") as caught:
        call("work_for_children:refuse", "rows.jsonl:3: not JSON", log=log, fresh=True)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("target", "request_", "said"),
    [
        ("work_for_children:fail", "heads", r"work_for_children:fail failed: KeyError: 'heads'; its output is in .*"),
        ("work_for_children:answer_with_no_value", None, r"answer_with_no_value failed: .*pickle"),
        ("work_for_children:nothing", None, r"nothing failed: AttributeError: .*'nothing'"),
        ("no_such_module:work", None, r"failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("work_for_children:die", signal.SIGKILL, r"the process running work_for_children:die died"),
        ("work_for_children:die", signal.SIGSEGV, r"the process running work_for_children:die died"),
        ("work_for_children:leave", 0, r"the process running work_for_children:leave died"),
    ],
)
def test_child_without_an_answer_is_a_failed_step(log: Path, target: str, request_: object, said: str) -> None:
    with pytest.raises(StepError, match=said):
        call(target, request_, log=log, fresh=True)


def test_unforeseen_error_leaves_its_traceback_in_the_log(log: Path) -> None:
    with pytest.raises(StepError, match=str(log)):
        call("work_for_children:fail", "heads", log=log, fresh=True)
    assert "work_for_children.py" in log.read_text(encoding="utf-8")


def test_child_without_a_sign_of_progress_is_ended(log: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="gave no sign for 1 s and was ended"):
        call("work_for_children:ignore_the_end", str(tmp_path / "here"), log=log, fresh=True, timeout_seconds=1)
    assert multiprocessing.active_children() == []


def test_error_in_a_progress_callback_ends_the_child(log: Path) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt("stopped by hand")

    with pytest.raises(KeyboardInterrupt, match="stopped by hand"):
        call("work_for_children:count", 3, log=log, report=stop, fresh=True)
    assert multiprocessing.active_children() == []


CALLER = """
import sys
from pathlib import Path
from loragate.child import call

target, how, here = sys.argv[1:]
call_it = lambda target, request: call(target, request, log=Path(here + ".child"), fresh=how == "fresh")
process, has_torch = call_it("work_for_children:identify", None)
assert has_torch == (how == "server")
call_it(f"work_for_children:{target}", here)
"""


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; a zombie has, though nobody has asked for its exit status."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.timeout(120)  # what is left behind is waited for until then
@pytest.mark.parametrize(
    ("target", "how", "fewest"),
    [("wait", "fresh", 1), ("wait_for_a_tool", "fresh", 2), ("ignore_the_end", "fresh", 1), ("wait", "server", 2)],
)
def test_killed_caller_leaves_no_process_behind(tmp_path: Path, target: str, how: str, fewest: int) -> None:
    here = tmp_path / "here"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    command = [sys.executable, "-c", CALLER, target, how, str(here)]
    with subprocess.Popen(command, env=environment) as caller:
        while not here.exists():
            assert caller.poll() is None, "the caller ended before its child was there"
            time.sleep(0.05)
        family = psutil.Process(caller.pid).children(recursive=True)
        assert len(family) >= fewest
        caller.send_signal(signal.SIGKILL)
    while not all(map(gone, family)):
        time.sleep(0.05)


def test_tool_writes_its_output_to_the_log(tmp_path: Path) -> None:
    run_tool([sys.executable, "-c", "import os; os.write(1, b'here'); os.write(2, b' too')"], log=tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b"here too"


def test_tool_gets_the_environment_that_it_is_given_beside_ours(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import os; os.write(1, (os.environ['WORD'] + str('PATH' in os.environ)).encode())",
    ]
    run_tool(command, log=tmp_path / "log", environment={"WORD": "yes"})
    assert (tmp_path / "log").read_bytes() == b"yesTrue"


def test_tool_that_fails_is_a_failed_step_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('first\\nno such tensor')"]
    with pytest.raises(StepError, match="ended with 1: no such tensor; its output is in"):
        run_tool(command, log=tmp_path / "log")


def test_tool_that_is_not_there_is_a_failed_step(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no-such-tool"):
        run_tool([str(tmp_path / "no-such-tool")], log=tmp_path / "log")
