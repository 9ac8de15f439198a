"""A server as a supervisor has it: started, killed, paused and started again, on the same addresses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY_SECONDS = 60.0


class Served:
    """``chunkcast-serve`` on loopback ports that stay the same from one start to the next.

    Args:
        arguments: of chunkcast-serve, but for the addresses.
        host: where it listens.
        log: file that its log goes to.
        environment: further variables.
        before: a program that runs it, with its arguments, such as ``ip netns exec NAME``.

    Attributes:
        ready_at: monotonic seconds of its last ready line.
        starts: how often it was started.
    """

    def __init__(
        self,
        *arguments: str | Path,
        log: Path,
        host: str = "127.0.0.1",
        environment: dict[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.port, self.metrics_port, self.admin_port = _free_ports(3)
        self.address, self.admin_address = f"{host}:{self.port}", f"{host}:{self.admin_port}"
        self.metrics_address = f"{host}:{self.metrics_port}"
        self._command = [*before, sys.executable, "-m", "chunkcast.server.cli", *map(str, arguments)]
        self._command += ["--listen", self.address, "--metrics-listen", self.metrics_address]
        self._command += ["--admin-listen", self.admin_address, "--log-format", "json"]
        self._log, self._environment = log, {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self.ready_at, self.starts = 0.0, 0

    @property
    def pid(self) -> int:
        """The server's process, whatever program runs it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,
            )
        self.starts += 1
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.ready_at = time.monotonic()
        if not line.startswith("ready"):
            raise RuntimeError(f"the server did not start: {self._log.read_text()[-500:]}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``."""
        assert self._process is not None
        self.send(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """Ask it to end, as a supervisor would; returns its exit code."""
        assert self._process is not None
        if self.running:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            return self._process.wait(READY_SECONDS)
        finally:
            if self.running:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process.stdout.close()

    def log(self) -> str:
        """What it said so far."""
        return self._log.read_text()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
