"""A headless Chromium driven over a pipe by the DevTools protocol: opens a page and tells all that went on in it.

No driver package: messages are JSON, ended by a zero byte, on file descriptors 3 and 4.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1360,1000",
    "--remote-debugging-pipe",
)
_SECONDS = 60.0


def chromium() -> str | None:
    """Where a Chromium is, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Page:
    """One open page."""

    to_browser: int
    from_browser: int
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _rest: bytes = b""
    _last: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do something; the browser's answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + _SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.from_browser], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            block = os.read(self.from_browser, 1 << 20)
            assert block, "the browser has ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def wait_for(self, method: str) -> None:
        """Until an event has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._receive())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Everything the console was told as a warning or an error, and every exception."""
        found = []
        for event in self.events:
            method, said = event.get("method"), event.get("params", {})
            is_loud = method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert")
            is_logged = method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning")
            if is_loud or is_logged or method == "Runtime.exceptionThrown":
                found.append(json.dumps(said))
        return found

    def requests(self) -> list[str]:
        """The addresses of everything it asked for."""
        asked = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in asked]


@contextlib.contextmanager
def opened(url: str, folder: Path, ready: str) -> Iterator[Page]:
    """A page at `url`, once the JavaScript expression `ready`, a promise, has come true."""
    command, profile = chromium(), folder / "profile"
    assert command is not None
    to_read, to_browser = os.pipe()
    from_browser, to_write = os.pipe()
    flags = [*FLAGS, f"--user-data-dir={profile}", "about:blank"]
    script = f'exec "$@" 3</dev/fd/{to_read} 4>/dev/fd/{to_write} 2>/dev/null'
    process = subprocess.Popen(["sh", "-c", script, "sh", command, *flags], pass_fds=(to_read, to_write))
    os.close(to_read)
    os.close(to_write)
    try:
        page = Page(to_browser, from_browser)
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            page.call(f"{domain}.enable")
        page.call("Page.navigate", url=url)
        page.wait_for("Page.loadEventFired")
        page.value(ready)
        yield page
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        process.wait(30)
