"""The benchmark's child processes: robots that answer with JSON, and a server that says where it listens.

Each has a session of its own, so that Ctrl-C reaches the benchmark alone, which then ends them. A server also ends when
its standard input does, and robots when they have measured: nothing outlives a benchmark that was killed.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOP_SECONDS = 10.0


class PeersError(Exception):
    """The benchmark cannot run; one line that says what to do."""


def run_robots(command: Sequence[str], request: dict[str, Any]) -> dict[str, Any]:
    """Run a robots' program: ``request`` to its standard input as JSON, what it measured from its standard output.

    Raises:
        PeersError: it failed; its own words are on standard error.
    """
    process = _start(command)
    try:
        output, _ = process.communicate(json.dumps(request))
    finally:
        _stop(process)
    if process.returncode:
        raise PeersError(f"exit code {process.returncode} from {shlex.join(command)}; its reason is above")
    measured: dict[str, Any] = json.loads(output)
    return measured


@contextmanager
def running_server(command: Sequence[str]) -> Iterator[int]:
    """Run a server that prints ``ready PORT``, until the block ends.

    Raises:
        PeersError: it ended before that; its own words are on standard error.
    """
    process = _start(command)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            raise PeersError(f"no server came of {shlex.join(command)}; its reason is above")
        yield int(ready[1])
    finally:
        _stop(process)


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
