"""The Prefect server that belongs to one command: started with it, gone with it, whatever ends it.

Prefect's own temporary server outlives a caller that is killed; this one asks the kernel to end it with us. Where
PREFECT_API_URL is set, that server is used and none is started.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

from loragate.errors import StepError
from loragate.home import Home

START_SECONDS = 180.0
"""Longest wait for the server; making its database takes longest, on a slow and busy machine minutes."""

SERVER = (
    "from loragate.child import die_with_parent; die_with_parent(); import sys, uvicorn; "
    "uvicorn.run('prefect.server.api.server:create_app', factory=True, host='127.0.0.1', "
    "port=int(sys.argv[1]), log_level='error')"
)

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
}
"""Settings that keep the libraries from reporting to their makers and from talking over us."""


def prepare_environment(home: Home, *, verbose: bool) -> None:
    """Set what libraries read when they are imported; what the user has set stays."""
    settings = QUIET | {
        "PREFECT_HOME": str(home.prefect),
        "PREFECT_LOGGING_LEVEL": "INFO" if verbose else "CRITICAL",
        "PREFECT_CLI_COLORS": "false",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def prefect_server(home: Home, *, serves_schedules: bool = False) -> Iterator[Callable[[], str]]:
    """Run a Prefect server while the context lasts.

    Yields a function that waits until the server answers and returns its API address: whatever is imported before
    that call loads while the server starts. Must be entered from the main thread: the kernel ends the server with
    the thread that started it.
    """
    given = os.environ.get("PREFECT_API_URL")
    if given:
        yield lambda: given
        return
    port = _free_port()
    address = f"http://127.0.0.1:{port}/api"
    home.logs.mkdir(parents=True, exist_ok=True)
    log = home.logs / "prefect-server.log"
    environment = os.environ | {"PREFECT_UI_ENABLED": "1" if serves_schedules else "0"}
    if not serves_schedules:
        environment |= {"PREFECT__SERVER_EPHEMERAL": "1"}
    with log.open("ab") as output:
        command = [sys.executable, "-c", SERVER, str(port)]
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            process_group=0,  # a Ctrl-C of the terminal is for us: a flow that ends needs the server to say so
        )
    os.environ["PREFECT_API_URL"] = address
    try:
        yield lambda: _wait(server, address, str(log))
    finally:
        del os.environ["PREFECT_API_URL"]
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], address: str, log: str) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise StepError(f"the Prefect server ended with {server.returncode} while starting; its output is in {log}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 - ours
            return address
        time.sleep(0.1)
    raise StepError(f"the Prefect server did not answer within {START_SECONDS:.0f} s; its output is in {log}")
