"""The replicas of ``chunkcast-serve --ray`` on this machine, by their metrics pages: which serves, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

READY_SECONDS = 60.0
LISTENING = "0A"
NO_PAGE = (OSError, HTTPException)
"""Where nothing listens, or something else: a connection to a free port may even be its own, and echo."""
ANSWERED = 'chunkcast_chunks_total{outcome="ok"'


class Replicas:
    """Those whose pages are on the first free ports from ``metrics_port`` on.

    Args:
        count: as many as there should be.
    """

    def __init__(self, metrics_port: int, count: int) -> None:
        self.count = count
        # A new one takes a port that a killed one has left, or the next.
        self._ports = range(metrics_port, metrics_port + 2 * count)

    def chunks(self) -> dict[int, float]:
        """Metrics port to the chunks that it has answered, of those that are there."""
        answered: dict[int, float] = {}
        for port in self._ports:
            with suppress(*NO_PAGE):
                lines = _page(port, "metrics").splitlines()
                answered[port] = sum(float(line.split()[-1]) for line in lines if line.startswith(ANSWERED))
        return answered

    def wait(self) -> None:
        """Until all are ready.

        Raises:
            RuntimeError: they are not within a minute.
        """
        deadline = time.monotonic() + READY_SECONDS
        while sum(_is_ready(port) for port in self._ports) < self.count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"there are no {self.count} replicas within {READY_SECONDS:g} s")
            time.sleep(0.1)

    def kill_the_one_that_serves(self, before: dict[int, float]) -> int:
        """End the replica that has answered most since ``before``, by SIGKILL; its metrics port.

        Raises:
            RuntimeError: none has answered.
        """
        now = self.chunks()
        port = max(now, key=lambda each: now[each] - before.get(each, 0.0))
        if not now[port] > before.get(port, 0.0):
            raise RuntimeError("no replica has answered")
        os.kill(_listening(port), signal.SIGKILL)
        return port


def _page(port: int, name: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=2.0) as page:
        return str(page.read().decode()) if page.status == HTTPStatus.OK else ""


def _is_ready(port: int) -> bool:
    with suppress(*NO_PAGE):
        return _page(port, "ready").startswith("ready")
    return False


def _listening(port: int) -> int:
    """The replica's process that listens on ``port`` of the loopback."""
    rows = map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
    inode = next(row[9] for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == LISTENING)
    found = subprocess.run(["pgrep", "-f", "ray::ServeReplica"], capture_output=True, text=True, check=False)
    for process in map(int, found.stdout.split()):
        with suppress(OSError):
            if f"socket:[{inode}]" in [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]:
                return process
    raise RuntimeError(f"no replica listens on port {port}")
