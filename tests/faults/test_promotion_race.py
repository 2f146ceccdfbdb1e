"""Promoters that run at once, and an MLflow server that goes down in the middle: one wins, and nothing is lost."""

import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import answers, environment, free_port, loragate, program, serving, tied
from mlflow.tracking import MlflowClient
from promotable import Promotable, promotable

from loragate.engines import registry
from loragate.errors import OutageError
from tasks import aliases
from tasks.promote import files_of

PROMOTERS = 8

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]


def test_of_eight_promoters_at_once_exactly_one_wins_and_nothing_is_lost(tmp_path: Path) -> None:
    place = promotable(tmp_path / "place")
    place.released(1)
    for number in range(2, 2 + PROMOTERS):
        place.released(number, judged_against="1", goal="candidate")
    home = place.home
    processes = [
        subprocess.Popen(
            tied([program("loragate"), "promote", f"tiny@{number}", "--home", str(home.root)]),
            cwd=place.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2, 2 + PROMOTERS)
    ]
    told = [process.communicate(timeout=400) for process in processes]
    codes = [process.returncode for process in processes]
    assert Counter(codes) == {0: 1, 5: PROMOTERS - 1}, told
    winner = str(2 + codes.index(0))
    owners = registry.aliases(home.tracking_uri, "tiny")
    assert owners == {"candidate": "9", "champion": winner, "previous": "1"}
    assert all(
        f"but tiny@{winner} is champion now" in said for code, (_, said) in zip(codes, told, strict=True) if code
    )
    asked = [p for p in home.standings("tiny").promotions if p.intent.kind == "promotion"]
    assert Counter(p.outcome for p in asked) == {"champion": 1, "lost": PROMOTERS - 1}
    assert len(MlflowClient(home.tracking_uri).search_model_versions("name = 'tiny'")) == 1 + PROMOTERS
    assert aliases.reconcile(home, None) == []


class Broken(BaseHTTPRequestHandler):
    """A server that answers everything with 500."""

    def answer(self) -> None:
        """Answer with 500."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


@contextmanager
def broken(port: int) -> Iterator[None]:
    """Answer everything on a port with 500 while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """Run a real MLflow server on a store that outlives it."""
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")]
    command = [program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
    with serving(command, f"http://127.0.0.1:{port}/health", folder, MLFLOW_DISABLE_TELEMETRY="true"):
        yield


def owed(place: Promotable, uri: str) -> None:
    """Hold an attempt that MLflow has not heard of against what must be so: it is released, whole, and waits."""
    (record,) = [r for r in place.home.records() if r.closed is not None and r.closed.version is None]
    assert record.outcome == "released"
    assert record.closed is not None
    assert "`loragate reconcile` does the rest" in record.closed.message
    assert place.home.report(record.opened.attempt).is_file()
    (found,) = aliases.reconcile(place.home, "tiny", looks=True)[:1]
    assert (found.state, "next: upload" in found.text) == ("open", True), uri


def test_server_that_is_down_or_broken_loses_nothing_and_reconcile_brings_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    place = promotable(tmp_path / "place")
    home = place.home
    server = tmp_path / "server"
    server.mkdir()
    with mlflow_server(server, port):
        place.released(1)
    assert not answers(f"{uri}/health")
    with pytest.raises(OutageError, match="does not do as asked"):
        place.released(2, judged_against="1")
    owed(place, uri)
    with broken(port):
        (still, *_) = aliases.reconcile(home, None)
        assert (still.state, "still open" in still.text) == ("open", True)
    journals = {r.opened.attempt: home.journal(r.opened.attempt).path.read_bytes() for r in home.journals()}
    with mlflow_server(server, port):
        done = loragate("reconcile", "--home", str(home.root), cwd=place.folder)
        assert done.code == 0, done.said
        assert "tiny@2 is champion" in done.stdout
        assert registry.aliases(uri, "tiny") == {"candidate": "2", "champion": "2", "previous": "1"}
        (second,) = [r for r in home.records() if r.release == "tiny@2"]
        registry.verify_version(uri, "tiny", "2", files_of(home, second), tmp_path / "read")
        assert second.closed is not None
        assert second.closed.aliases == ("candidate", "champion")
        client = MlflowClient(uri)
        run = client.get_run(str(client.get_model_version("tiny", "2").run_id))
        assert (run.info.status, run.data.tags["loragate.verdict"]) == ("FINISHED", "released")
    assert {name: home.journal(name).path.read_bytes() for name in journals} == journals
