"""A page in headless Chromium, driven over the pipe of its DevTools protocol: no port, no package, no sleep."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
PIPES = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null'  # the protocol's descriptors are 3 and 4
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


@dataclass
class Page:
    """One tab."""

    process: subprocess.Popen[bytes]
    session: str = ""
    sent: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)  # everything that was not an answer

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events that come before it are kept."""
        assert self.process.stdin
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (answer := self.receive()).get("id") != self.sent:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def receive(self) -> dict[str, Any]:
        """The next message."""
        assert self.process.stdout
        content = bytearray()
        while (byte := self.process.stdout.read(1)) != b"\0":
            assert byte, "the browser has gone"
            content += byte
        message: dict[str, Any] = json.loads(content)
        return message

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, promises awaited; an exception is an AssertionError."""
        answer = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Load a file and wait until it is drawn."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        loaded = len(self.happened("Page.loadEventFired"))
        self.command("Page.navigate", url=path.absolute().as_uri())
        while len(self.happened("Page.loadEventFired")) == loaded:
            self.events.append(self.receive())
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def happened(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of one kind so far."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def screenshot(self, path: Path) -> None:
        """The whole page, not only what is in the window."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        answer = self.command("Page.captureScreenshot", clip={**size, "scale": 1}, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A new tab, with what the page logs, throws and requests on record."""
    command = ["sh", "-c", PIPES, "sh", CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        page = Page(process)
        target = page.command("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.command(f"{domain}.enable")
        try:
            yield page
        finally:
            process.kill()
