"""Debian's Chromium without a window, driven over its DevTools protocol: what a person's browser would see and do."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.conftest import required_program

START_SECONDS = 60.0
ANSWER_SECONDS = 30.0


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._next, self.events = socket, 0, list[dict[str, Any]]()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method; what happens meanwhile is kept in ``events``."""
        self._next += 1
        self._socket.send(json.dumps({"id": self._next, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_SECONDS))
            if message.get("id") == self._next:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_until(self, expression: str) -> None:
        """Wait for a JavaScript expression to be true."""
        give_up = time.monotonic() + ANSWER_SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < give_up, f"never true: {expression}"
            time.sleep(0.05)

    def open(self, url: str, *, width: int, height: int, scheme: str) -> None:
        """Load ``url`` as a device of this size and colour scheme would."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        self.wait_until("document.readyState === 'complete' && document.body.dataset.ready === 'yes'")

    def screenshot(self, file: Path) -> None:
        """The whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def requested(self) -> set[str]:
        """Every address that was asked for."""
        asked = (event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent")
        return {each["request"]["url"] for each in asked}

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, exceptions, and requests that failed."""
        found = []
        for event in self.events:
            parameters = event["params"]
            console = event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning")
            log = event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning")
            if console or log or event["method"] in ("Runtime.exceptionThrown", "Network.loadingFailed"):
                found.append(json.dumps(parameters))
        return found


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A fresh browser with one tab; its profile goes into ``folder``."""
    command = [required_program("chromium", "chromium"), "--headless", "--no-sandbox", "--disable-gpu"]
    # Chromium's own calls home would only fail here.
    command += ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_tab(folder / "profile" / "DevToolsActivePort"), max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tab(port_file: Path) -> str:
    """The first tab's socket."""
    give_up = time.monotonic() + START_SECONDS
    while not (port_file.is_file() and re.match(r"\d+\n", text := port_file.read_text())):
        assert time.monotonic() < give_up, "chromium did not start"
        time.sleep(0.05)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{text.split()[0]}/json/list", timeout=10) as answer:
        tabs = json.loads(answer.read())
    return str(next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"])
