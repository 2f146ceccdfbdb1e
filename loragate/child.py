"""Heavy work in a child process: its memory comes back, its death is a failed step, and it never outlives us.

A call names its engine function as `module:function`, so that the parent never imports a heavy library. The function
takes one request and a progress callback and returns one value; all three are plain, picklable values. Children are
forked from a server process that has imported torch, transformers and peft once; a fresh one starts a new interpreter.
When the parent dies, even by SIGKILL, every child sees its pipe close and ends, and with the last of them the server.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType

from loragate.errors import LoragateError, StepError

PRELOADED = ["loragate.engines.language_model"]
PR_SET_PDEATHSIG = 1  # linux/prctl.h
END_SECONDS = 10.0
"""How long a child that has answered may take to end by itself, which lets libraries clean up."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step has come.

    Attributes:
        done: Units finished, out of `total`; 0 where nobody knows how many there are.
        numbers: Measurements to show and to record, by name.
    """

    done: int
    total: int
    unit: str
    numbers: dict[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Do nothing with progress."""


def call(
    target: str,
    request: object,
    *,
    log: Path,
    report: Report = ignore,
    fresh: bool = False,
    timeout_seconds: float = 0,
) -> object:
    """Run `module:function` on a request in a child process and return its value.

    The child's output goes to the file `log`. `timeout_seconds` without a sign of progress ends it; 0 waits for ever.

    Raises:
        LoragateError: The one that the function raised.
        StepError: It raised another error, or its process died.
    """
    context: BaseContext = multiprocessing.get_context("spawn" if fresh else "forkserver")
    if not fresh:
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_serve, args=(target, request, theirs, str(log)))  # type: ignore[attr-defined]
    with _bare_main():
        process.start()
    theirs.close()
    try:
        value = _answer(ours, target, log, report, timeout_seconds)
        process.join(END_SECONDS)
        return value
    finally:
        process.kill()
        process.join()


def _answer(ours: Connection, target: str, log: Path, report: Report, timeout_seconds: float) -> object:
    while True:
        if not ours.poll(timeout_seconds or None):
            raise StepError(f"{target} gave no sign for {timeout_seconds:.0f} s and was ended; its output is in {log}")
        try:
            kind, value = ours.recv()
        except (EOFError, OSError):
            raise StepError(
                f"the process running {target} died (out of memory, or killed from outside); its output is in {log}"
            ) from None
        if kind == "progress":
            report(value)
        elif kind == "error":
            raise value
        else:
            return value


def _serve(target: str, request: object, answers: Connection, log: str) -> None:
    """Run the function in the child and send back what it returns or raises."""
    watch_caller()
    _write_output_to(log)
    module, _, function = target.partition(":")
    try:
        work = getattr(importlib.import_module(module), function)
        value = work(request, lambda progress: answers.send(("progress", progress)))
        answers.send(("value", value))
    except LoragateError as error:
        answers.send(("error", error))
    except Exception as error:  # noqa: BLE001 - a process boundary: whatever it was must reach the parent
        traceback.print_exc()
        answers.send(("error", StepError(f"{target} failed: {type(error).__name__}: {error}; its output is in {log}")))


def watch_caller() -> None:
    """See that this process, started through multiprocessing, ends when the one that started it does."""
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    """Wait for the process that called us and go down with it.

    The fork server cannot do this for us: each child holds the pipe that keeps the server alive.
    """
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _write_output_to(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


def die_with_parent() -> None:
    """Ask the kernel to kill this process as soon as the thread that started it is gone (Linux)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def _bare_main() -> Iterator[None]:
    """Keep a starting child from importing our main module again (the orchestrator's takes seconds)."""
    main, bare = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = bare
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def run_tool(command: Sequence[str], *, log: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command to its end from within a child, its output in `log`; it dies with us.

    Raises:
        StepError: It could not be started or ended with an error.
    """
    try:
        with log.open("ab") as output:
            process = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                preexec_fn=die_with_parent,
                check=False,
            )
    except OSError as error:
        raise StepError(f"{command[0]} cannot be started: {error.strerror}") from None
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise StepError(f"{command[0]} ended with {process.returncode}: {''.join(last)}; its output is in {log}")
