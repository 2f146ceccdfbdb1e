"""A headless Chromium that a test speaks to: opens pages, waits for what they show, and looks into their frames."""

import base64
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import tied
from websockets.sync.client import ClientConnection, connect

SHOWN = "document.body ? document.body.innerText : ''"
PORT_FILE = "DevToolsActivePort"


@dataclass(slots=True)
class Browser:
    """A browser with one page."""

    socket: ClientConnection
    session: str = ""
    sent: int = 0
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        """Ask the browser, or its page once there is one, and wait for the answer."""
        self.sent += 1
        session = {"sessionId": self.session} if self.session else {}
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params, **session}))
        while True:
            answer: dict[str, Any] = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.sent:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])

    def open(self, address: str) -> None:
        """Go to a page; from an empty one, so that nothing of the page before is taken for this one's."""
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=address)

    def shown(self) -> str:
        """The text that the page shows in one line, its frames' after it."""
        tree = self.ask("Page.getFrameTree")["frameTree"]
        frames = [tree["frame"]["id"], *(each["frame"]["id"] for each in tree.get("childFrames", ()))]
        return " ".join(" ".join(self._text(frame) for frame in frames).split())

    def _text(self, frame: str) -> str:
        world = self.ask("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
        return str(self.ask("Runtime.evaluate", expression=SHOWN, contextId=world)["result"].get("value", ""))

    def wait_for(self, texts: Sequence[str], seconds: float = 60) -> str:
        """Wait until the page shows every text; return all that it shows.

        Raises:
            AssertionError: It does not within `seconds`; what is missing, and what is shown, is told.
        """
        end = time.monotonic() + seconds
        while missing := [text for text in texts if text not in (seen := self.shown())]:
            assert time.monotonic() < end, f"not shown: {missing}; shown:\n{seen}"
            time.sleep(0.2)
        return seen

    def in_frame(self, script: str) -> object:
        """Run a script beside those of the page's one frame and return its value."""
        (frame,) = self.ask("Page.getFrameTree")["frameTree"]["childFrames"]
        world = self.ask("Page.createIsolatedWorld", frameId=frame["frame"]["id"])["executionContextId"]
        return self.ask("Runtime.evaluate", expression=script, contextId=world)["result"].get("value")

    def picture(self, file: Path) -> None:
        """Save what the window shows."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))


@contextmanager
def browser(chromium: str, flags: Sequence[str], profile: Path) -> Iterator[Browser]:
    """Start a browser and end it."""
    command = [chromium, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    command += ["--disable-features=IsolateSandboxedIframes", "--window-size=1500,1400", "about:blank"]
    silent = subprocess.DEVNULL
    with subprocess.Popen(tied(command), stdout=silent, stderr=silent) as process:
        try:
            with connect(_address(profile), max_size=1 << 28) as socket:
                found = Browser(socket)
                target = found.ask("Target.createTarget", url="about:blank")["targetId"]
                found.session = found.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                yield found
        finally:
            process.terminate()


def _address(profile: Path, seconds: float = 60) -> str:
    """Where the browser listens, once it does."""
    end, file = time.monotonic() + seconds, profile / PORT_FILE
    while not file.is_file() or len(file.read_text(encoding="utf-8").splitlines()) < 2:
        assert time.monotonic() < end, "the browser has not started"
        time.sleep(0.1)
    port, path = file.read_text(encoding="utf-8").splitlines()[:2]
    return f"ws://127.0.0.1:{port}{path}"
