"""A server of one's own for the length of a benchmark: ``chunkcast-serve`` as a child process on free ports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chunkcast.client import PolicyUnavailable

STOP_SECONDS = 15.0


@dataclass(frozen=True)
class PrivateServer:
    """Where it listens: HOST:PORT of gRPC and of the metrics page."""

    address: str
    metrics_address: str


@contextmanager
def private_server(bundle: Path, *arguments: str) -> Iterator[PrivateServer]:
    """Serve ``bundle`` until the block ends; further ``arguments`` go to chunkcast-serve.

    Raises:
        PolicyUnavailable: the server did not start; its own message says why.
    """
    command = [sys.executable, "-m", "chunkcast.server.cli", "--bundle", str(bundle)]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *arguments]
    # A session of its own: Ctrl-C reaches this program, which then stops the server.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            _, log = process.communicate()
            lines = [line for line in log.splitlines() if line.strip()]
            reason = lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"
            raise PolicyUnavailable(reason)
        addresses = dict(item.split("=", 1) for item in ready[1:])
        # The log goes on; unread, a full pipe would stop the server.
        with _drained(process):
            yield PrivateServer(addresses["grpc"], addresses["metrics"])
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def _drained(process: subprocess.Popen[str]) -> Iterator[None]:
    import threading

    assert process.stderr is not None
    log = process.stderr

    def drain() -> None:
        for _ in log:
            pass
        log.close()

    thread = threading.Thread(target=drain, name="private-server-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        process.terminate()
        thread.join(STOP_SECONDS)
