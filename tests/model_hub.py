"""A model hub of one repository on this machine: what huggingface_hub asks of one, and ways to go wrong."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_a_token_that_nobody_is_to_see"  # noqa: S105 - of this hub
LARGE = (".safetensors", ".gguf", ".bin")


@dataclass(slots=True)
class ModelHub:
    """What the hub holds, and how it behaves.

    Attributes:
        files: Content by branch and name.
        heads: Newest commit by branch.
        large: Uploaded large files by their SHA-256.
        private: Whether the repository was made so; None before it is made.
        damages: End of the names of files that it stores with a bit flipped.
        ignores: End of the names that the repository's .gitignore leaves out.
        fails: Status that every commit is answered with; 0: none.
        asked: Every request's method and path.
    """

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.gguf lfs\n"}})
    heads: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None
    damages: str = "nothing"
    ignores: str = "nothing"
    fails: int = 0
    asked: list[str] = field(default_factory=list)

    def commit(self, branch: str, lines: list[dict[str, Any]]) -> str:
        """Take a commit; what is damaged on the way is stored so."""
        held = self.files[branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                held[value["path"]] = self._stored(value["path"], base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                held[value["path"]] = self._stored(value["path"], self.large[value["oid"]])
            elif line["key"] == "deletedFile":
                del held[value["path"]]
        oid = hashlib.sha1(repr(sorted(held.items())).encode(), usedforsecurity=False).hexdigest()
        self.files[oid] = dict(held)
        self.heads[branch] = oid
        return oid

    def _stored(self, name: str, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if name.endswith(self.damages) else content

    def tree(self, revision: str) -> list[dict[str, Any]]:
        """Every file as the hub's API tells it."""
        return [self._told(name, content) for name, content in self.files[revision].items()]

    @staticmethod
    def _told(name: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        told: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git}
        if name.endswith(LARGE):
            told["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return told


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    """Run a hub while the context lasts."""
    hub = ModelHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, value: object = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle_one(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path.startswith("/large/"):
                hub.large[path.removeprefix("/large/")] = body
                self.answer(200)
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
            else:
                self.answer(*asked(hub, path, body))

        do_GET = do_POST = do_PUT = handle_one

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asked(hub: ModelHub, path: str, body: bytes) -> tuple[int, object]:
    """Answer one request of a client that may write."""
    what, _, last = path.rpartition("/")
    ways = {
        "/api": card,
        "/api/repos": make,
        "/revision": newest,
        "/tree": tree,
        "/branch": branch,
        "/preupload": preupload,
    }
    for ending, way in (ways | {"/objects": batch, "/commit": commit}).items():
        if what.endswith(ending):
            return way(hub, last, body)
    return 404, {"error": f"{path} is nothing that a push asks for"}


def card(_: ModelHub, __: str, body: bytes) -> tuple[int, object]:
    """Look at a model card's metadata."""
    begins = json.loads(body)["content"].startswith("---\n")
    return 200, {"errors": [] if begins else [{"message": "no metadata"}], "warnings": []}


def make(hub: ModelHub, _: str, body: bytes) -> tuple[int, object]:
    """Make the repository."""
    if hub.private is not None:
        return 409, {"error": "You already created this model repo", "url": f"{hub.address}/someone/tiny"}
    hub.private = json.loads(body)["visibility"] == "private"
    return 200, {"url": f"{hub.address}/someone/tiny"}


def tree(hub: ModelHub, revision: str, _: bytes) -> tuple[int, object]:
    """List what it holds."""
    return 200, hub.tree(revision)


def newest(hub: ModelHub, branch_name: str, _: bytes) -> tuple[int, object]:
    """Tell of its newest commit."""
    return 200, {"id": "someone/tiny", "sha": hub.heads[branch_name], "siblings": []}


def branch(hub: ModelHub, name: str, _: bytes) -> tuple[int, object]:
    """Make a branch from main."""
    hub.files.setdefault(name, dict(hub.files["main"]))
    return 200, {}


def preupload(hub: ModelHub, branch_name: str, body: bytes) -> tuple[int, object]:
    """Say how each file is to come, and what is there under its name."""
    there = {each["path"]: each.get("lfs", each)["oid"] for each in hub.tree(branch_name)}
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": file["path"].endswith(hub.ignores),
            "oid": there.get(file["path"]),
        }
        for file in json.loads(body)["files"]
    ]
    return 200, {"files": files}


def batch(hub: ModelHub, _: str, body: bytes) -> tuple[int, object]:
    """Say where large files go."""
    objects = [
        {**each, "actions": {"upload": {"href": f"{hub.address}/large/{each['oid']}"}}}
        for each in json.loads(body)["objects"]
    ]
    return 200, {"transfer": "basic", "objects": objects}


def commit(hub: ModelHub, branch_name: str, body: bytes) -> tuple[int, object]:
    """Take a commit."""
    if hub.fails:
        return hub.fails, {"error": "the hub has no more room"}
    oid = hub.commit(branch_name, [json.loads(line) for line in body.splitlines()])
    return 200, {"commitUrl": f"{hub.address}/someone/tiny/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}
