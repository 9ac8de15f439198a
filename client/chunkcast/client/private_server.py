"""A server of one's own for the length of a benchmark: ``chunkcast-serve`` as a child process on free ports."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from chunkcast.client.errors import PolicyUnavailable

STOP_SECONDS = 15.0


@dataclass(frozen=True)
class PrivateServer:
    """A running server.

    Attributes:
        address: HOST:PORT of gRPC.
        metrics_address: HOST:PORT of the metrics page.
        admin_address: HOST:PORT of the admin service.
        process: the child process.
    """

    address: str
    metrics_address: str
    admin_address: str
    process: subprocess.Popen[str]


@contextmanager
def private_server(bundle: Path | None, *arguments: str) -> Iterator[PrivateServer]:
    """Serve ``bundle`` until the block ends; further ``arguments`` go to chunkcast-serve.

    Raises:
        PolicyUnavailable: the server did not start; its own message says why.
    """
    command = [sys.executable, "-m", "chunkcast.server.cli"]
    command += ["--bundle", str(bundle)] if bundle else []
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    command += ["--admin-listen", "127.0.0.1:0", "--stop-with-stdin", *arguments]
    # A session of its own: Ctrl-C reaches this program, which then stops the server. The pipe ends with this program,
    # however it ends, and the server with the pipe.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    log = _LogReader(process.stderr)
    try:
        ready = process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            process.wait(STOP_SECONDS)
            raise PolicyUnavailable(log.reason() or f"the server ended with exit code {process.returncode}")
        addresses = dict(item.split("=", 1) for item in ready[1:])
        yield PrivateServer(addresses["grpc"], addresses["metrics"], addresses["admin"], process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.join()
        process.stdout.close()
        process.stdin.close()


class _LogReader(threading.Thread):
    """Reads the server's log as it comes (unread, a full pipe would stop the server) and keeps its last lines."""

    KEPT_LINES = 50

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(name="private-server-log", daemon=True)
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=self.KEPT_LINES)
        self.start()

    def run(self) -> None:
        """Read to the end."""
        with self._stream:
            self._lines.extend(line.rstrip() for line in self._stream)

    def reason(self) -> str:
        """The server's own ``error:`` line, or else the last it said."""
        self.join()
        lines = [line for line in self._lines if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or [""])[-1]
