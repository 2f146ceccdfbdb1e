"""What child processes do in the tests: small functions in the form that `loragate.child.call` expects."""

import os
import signal
import sys
import time
from pathlib import Path

from loragate.child import Progress, Report, run_tool
from loragate.errors import DataFileError


def echo(request: object, report: Report) -> object:
    """Return what was asked."""
    return request


def count(request: int, report: Report) -> str:
    """Report every step."""
    for step in range(1, request + 1):
        report(Progress(step, request, "steps", {"loss": 1 / step}))
    return "done"


def identify(request: object, report: Report) -> tuple[int, bool]:
    """Say which process this is and whether torch is in it."""
    return os.getpid(), "torch" in sys.modules


def speak(request: str, report: Report) -> None:
    """Write to both outputs."""
    sys.stdout.write(f"out: {request}\n")
    sys.stdout.flush()
    os.write(2, f"err: {request}\n".encode())


def refuse(request: str, report: Report) -> None:
    """Answer with an error that is meant for the user."""
    raise DataFileError(request)


def fail(request: str, report: Report) -> None:
    """Break in a way that nobody foresaw."""
    raise KeyError(request)


def answer_with_no_value(request: object, report: Report) -> object:
    """Return something that cannot leave the process."""
    return lambda: None


def die(request: int, report: Report) -> None:
    """Be killed."""
    os.kill(os.getpid(), request)


def leave(request: int, report: Report) -> None:
    """End without an answer."""
    sys.exit(request)


def wait(request: str, report: Report) -> None:
    """Say by a file that we are here, and stay."""
    Path(request).touch()
    time.sleep(600)


def wait_for_a_tool(request: str, report: Report) -> None:
    """Say by a file that a tool of ours is here, and stay as long as it does."""
    command = [sys.executable, "-c", f"import time; open({request!r}, 'w').close(); time.sleep(600)"]
    run_tool(command, log=Path(f"{request}.log"))


def ignore_the_end(request: str, report: Report) -> None:
    """Stay whatever signal asks us to go."""
    for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(asked, signal.SIG_IGN)
    wait(request, report)
