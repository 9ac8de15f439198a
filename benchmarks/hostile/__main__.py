"""The attack, the healthy robot beside it, and what the server's process did."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.lab import Lab, open_files, resident_mb, until
from benchmarks.hostile.kinds import INSTRUCTION, STATE, STATE_SIZE
from chunkcast.client import Credentials, PolicyClient

RATE_HZ = 50.0
SEEING = Path("policies/metaworld-six-rgb")
SETTLED_FILES = 4
"""File descriptors that may be open more than before: a connection or two that has not been closed yet."""
GROWTH_MOST_MB = 32.0
"""Of resident memory, from before the attack to after it."""
GROWTH_MOST = 0.02
"""Of it from the second quarter of the attack to its last: by then every thread has its buffers, and what
still grows with the messages is a leak."""
P99_MOST = 2.0
LEVEL = "memory is level from the second quarter of the attack on"
P99 = "its p99 is within twice its quiet value"
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class HostileConfig:
    """Send malformed and hostile messages to a server, beside a healthy robot."""

    count: int = 102_000
    """Messages to send; a hundredth of them is a call that is refused for its rate, and so not judged."""
    quiet: float = 20.0
    """Seconds for which the healthy robot is alone first."""
    client_rate: float = 300.0
    """chunkcast-serve --max-client-rate: beyond it the hostile client is told so, and tries again."""
    json: Path = Path("docs/results/hostile.json")
    """File for everything measured."""


class HealthyRobot:
    """Asks at a steady rate, on a thread of its own."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._client = PolicyClient(address, credentials=credentials)
        self._stream = self._client.stream("metaworld-six", robot_id="healthy")
        self._over = threading.Event()
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        observation = {STATE: np.zeros(STATE_SIZE, np.float32)}
        due = time.monotonic()
        step = 0
        while not self._over.is_set():
            began = time.perf_counter()
            try:
                self._stream.request(observation, episode_id="healthy", step=step, instruction=INSTRUCTION)
                self.seconds.append(time.perf_counter() - began)
            except Exception as error:
                self.failures.append(str(error))
            step += 1
            due += 1.0 / RATE_HZ
            time.sleep(max(0.0, due - time.monotonic()))

    def take(self) -> list[float]:
        """The seconds of its chunks since the last call."""
        taken, self.seconds = self.seconds, []
        return taken

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join()
        self._stream.close()
        self._client.close()


class Sampler:
    """Looks at a process's resident memory again and again, on a thread of its own."""

    def __init__(self, pid: int) -> None:
        self._pid, self._over, self._seen = pid, threading.Event(), [resident_mb(pid)]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self._seen.append(resident_mb(self._pid))

    def quarters(self) -> list[float]:
        """The median of each quarter of the time, MB."""
        return [round(float(np.median(part)), 1) for part in np.array_split(self._seen, 4) if len(part)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def run(config: HostileConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Everything; returns the report."""
    lab = Lab(folder)
    files = {name: folder / name for name in ("healthy", "hostile")}
    for name, file in files.items():
        file.write_text(f"{name} {secrets.token_urlsafe()}\n")
    tokens = folder / "tokens"
    tokens.write_text("".join(file.read_text() for file in files.values()))
    served = lab.served(SEEING, "--token-file", tokens, "--max-client-rate", str(config.client_rate))
    with served:
        robot = HealthyRobot(served.address, Credentials(token_file=files["healthy"]))
        time.sleep(2.0)
        _attack(served.address, max(500, config.count // 50), files["hostile"], seed=1)  # what is made once is made
        robot.take()
        with console.status("the healthy robot alone"):
            time.sleep(config.quiet)
        quiet = robot.take()
        before = resident_mb(served.pid), open_files(served.pid)
        began = time.monotonic()
        with console.status(f"{config.count} hostile messages"), Sampler(served.pid) as memory:
            rows = _attack(served.address, config.count, files["hostile"], seed=2)
        seconds = time.monotonic() - began
        beside = robot.take()
        settled = _settles(served.pid, before[1])
        after = resident_mb(served.pid), open_files(served.pid)
        robot.close()
        alive = served.running
        code = served.stop()
    quantiles = {name: _milliseconds(values) for name, values in (("quiet", quiet), ("beside", beside))}
    p99_ratio = round(quantiles["beside"]["p99"] / quantiles["quiet"]["p99"], 3)
    judged = sum(row["count"] for row in rows if row["kind"] != "beyond its rate")
    wrong = [row for row in rows if not row["right"]]
    tracebacks = sum("Traceback" in line or '"exception"' in line for line in served.log().splitlines())
    return {
        "judged": judged,
        "told_that_they_are_beyond_their_rate": sum(row["count"] for row in rows) - judged,
        "seconds": round(seconds, 1),
        "wrong": wrong,
        "by_kind": rows,
        "healthy_robot_ms": quantiles,
        "healthy_robot_failures": robot.failures,
        "p99_ratio": p99_ratio,
        "resident_mb": {"before": round(before[0], 1), "quarters": memory.quarters(), "after": round(after[0], 1)},
        "open_files": [before[1], after[1]],
        "exceptions_in_the_log": tracebacks,
        "exit_code": code,
        "holds": {
            "each was answered rightly": not wrong,
            "no crash": alive and code == 0,
            "no leak": settled and after[0] - before[0] < GROWTH_MOST_MB,
            LEVEL: memory.quarters()[3] < (1.0 + GROWTH_MOST) * memory.quarters()[1],
            "the healthy robot had every chunk": not robot.failures,
            P99: p99_ratio <= P99_MOST,
        },
    }


def _settles(pid: int, files: int) -> bool:
    try:
        until(lambda: open_files(pid) <= files + SETTLED_FILES, "files to be closed", timeout=30.0)
    except TimeoutError:
        return False
    return True


def _attack(address: str, count: int, token: Path, seed: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.hostile.attack", address, str(count), str(token), str(seed)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def _milliseconds(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"chunks": len(values), "p50": round(float(p50) * 1e3, 2), "p99": round(float(p99) * 1e3, 2)}


def main(config: HostileConfig) -> None:
    """Exit code 1 if something did not hold."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        report = run(config, Path(folder), console)
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    report["command"] = f"python -m benchmarks.hostile --count {config.count}"
    table = Table("kind", "told", "count", "right")
    for row in report["by_kind"]:
        table.add_row(row["kind"], row["told"], str(row["count"]), "yes" if row["right"] else "NO")
    console.print(table)
    left_out = ("by_kind", "wrong", "machine", "command")
    console.print({key: value for key, value in report.items() if key not in left_out})
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")
    raise SystemExit(0 if all(report["holds"].values()) else 1)


if __name__ == "__main__":
    main(tyro.cli(HostileConfig))
