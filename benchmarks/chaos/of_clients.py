"""Another client of the same server stops reading, or floods it, while an arm plays."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chaos.arm import Arm
from benchmarks.chaos.lab import Lab, Outcome, metrics, resident_mb
from chunkcast.client import Credentials

CLIENT_RATE = 400
"""Requests a second that the hostile client may make; the arm, which has a token of its own, makes some 20."""


def stops_reading(lab: Lab) -> Outcome:
    """Eight streams send observations as fast as they can and read no answer: what piles up is theirs."""
    return _beside(lab, "stops-reading")


def floods(lab: Lab) -> Outcome:
    """Eight streams send observations as fast as they can, and read the answers."""
    return _beside(lab, "floods")


def _beside(lab: Lab, what: str) -> Outcome:
    outcome = Outcome()
    arm_token, other_token = (_token(lab.folder, name) for name in ("arm", "other"))
    tokens = lab.folder / "tokens"
    tokens.write_text(arm_token.read_text() + other_token.read_text())
    arguments = ("--token-file", tokens, "--max-client-rate", str(CLIENT_RATE))
    with (
        lab.served(*arguments) as served,
        Arm(served.address, credentials=Credentials(token_file=arm_token)) as arm,
    ):
        quiet = resident_mb(served.pid)
        broken = time.monotonic()
        with _hostile(served.address, what, other_token) as process:
            time.sleep(lab.pause)
            arm.wait_for_chunks(20)
            busy = resident_mb(served.pid)
            outcome.check("the hostile client was at it still", process.poll() is None)
        arm.wait_for_chunks(20)
        refused = [line for line in metrics(served).splitlines() if line.startswith("chunkcast_refused_requests_total")]
    outcome.facts = arm.timeline.summary(broken)
    outcome.facts |= {"resident_mb": [round(quiet, 1), round(busy, 1)], "refused": refused}
    outcome.check_undisturbed()
    outcome.check("the server's memory stayed bounded", busy < quiet + 64.0)
    return outcome


def _token(folder: Path, name: str) -> Path:
    file = folder / name
    file.write_text(f"{name} {secrets.token_urlsafe()}\n")
    return file


@contextmanager
def _hostile(address: str, what: str, token: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.chaos.hostile", address, what, str(token)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "at it\n"
        try:
            yield process
        finally:
            process.kill()
            process.wait()
