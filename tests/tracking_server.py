"""A real MLflow server of the tests' own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import free_port, program, serving

from loragate.orchestrator import QUIET

SETTINGS = QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Starts no worker processes for jobs that nothing here asks for."""


@contextmanager
def mlflow_server(folder: Path, store: str = "") -> Iterator[str]:
    """Run one and give its address; its store and files outlive it.

    Args:
        folder: Where its files go, and its store where no other is named.
        store: Address of another store.
    """
    port = free_port()
    store = store or f"sqlite:///{folder}/server.db"
    stores = ["--backend-store-uri", store, "--artifacts-destination", str(folder / "files")]
    command = [program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores]
    with serving(command, f"http://127.0.0.1:{port}/health", folder, **SETTINGS):
        yield f"http://127.0.0.1:{port}"
