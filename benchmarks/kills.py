"""Success of the six tasks when the server is killed once in each episode, beside none.

``python -m benchmarks.kills`` (``make kills``) plays MetaWorld at its control rate, in real time: while there is no
server the arm comes to rest, its gripper as it was, and the episode goes on when the server is back. Writes
docs/results/kills.json.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.chaos.arm import PATIENT
from benchmarks.chaos.served import Served
from chunkcast.client import ActionChunk, ChunkPlayer, PolicyClient
from chunkcast.client.chunk_player import ControlRate
from chunkcast.client.sim.metaworld_robot import MetaWorldRobot
from chunkcast.simulation.metaworld_tasks import MAX_EPISODE_STEPS
from chunkcast.simulation.success import success_rate

KILL_TICKS = (5, 35)
"""Between which the server is killed: the shortest episodes last some 50."""


@dataclass(frozen=True)
class KillsConfig:
    """Kill the server once an episode."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy."""
    episodes: int = 20
    """Of each task, with a kill and without."""
    seed: int = 1_000_000
    """The first episode's."""
    json: Path = Path("docs/results/kills.json")
    """File for everything measured."""


class Killer:
    """Kills a server and starts it again, on a thread of its own."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def strike(self) -> None:
        """Now."""
        self._thread = threading.Thread(target=self._kill)
        self._thread.start()

    def _kill(self) -> None:
        try:
            self._served.kill()
            self._served.start()
        except Exception as error:
            self._failure = error

    def join(self) -> None:
        """Until the server is ready again."""
        if self._thread:
            self._thread.join()
        if self._failure is not None:
            raise self._failure


@dataclass
class Played:
    """An episode."""

    task: str
    seed: int
    success: bool
    steps: int
    starved: int
    reconnected: float | None = None


class Arm:
    """A robot in real time."""

    def __init__(self, served: Served) -> None:
        self._served, self._chunk_at = served, 0.0
        self._client = PolicyClient(served.address)
        self._player = ChunkPlayer(self._client, robot_id="killed", config=PATIENT, timeout=10.0, on_chunk=self._note)
        self.tasks = [each.task or each.text for each in self._player.spec.instructions]
        self._robots: dict[str, MetaWorldRobot] = {}
        self._after: float | None = None

    def _note(self, chunk: ActionChunk, seconds: float) -> None:
        # The first chunk of another server process.
        if self._waiting_since_kill and self._served.ready_at > self._killed_at:
            self._after = time.monotonic() - self._served.ready_at
            self._waiting_since_kill = False

    _waiting_since_kill = False
    _killed_at = 0.0

    def play(self, task: str, seed: int, kill_at: int | None) -> Played:
        """One episode; the server is killed at the tick ``kill_at``."""
        if task not in self._robots:
            self._robots[task] = MetaWorldRobot(task)
        robot = self._robots[task]
        robot.begin_episode(seed)
        self._player.begin_episode(task, noise_seed=seed, episode_id=f"{task}/{seed}/{time.monotonic_ns()}")
        killer, self._after, self._waiting_since_kill = Killer(self._served), None, False
        rate = ControlRate(self._player.spec.action.control_rate_hz, MAX_EPISODE_STEPS)
        rate.start(time.monotonic())
        while not robot.done:
            if robot.steps == kill_at:
                self._killed_at, self._waiting_since_kill = time.monotonic(), True
                killer.strike()
            robot.act(self._player.next_action(robot.observe()))
            time.sleep(rate.seconds_ahead(time.monotonic()))
        killer.join()
        return Played(task, seed, robot.success, robot.steps, self._player.starved_ticks, self._after)

    def close(self) -> None:
        """End it."""
        self._player.close()
        self._client.close()


def main(config: KillsConfig) -> None:
    """Play, print, write."""
    console = Console()
    generator = random.Random(config.seed)
    results: dict[str, list[Played]] = {"none": [], "kill": []}
    with tempfile.TemporaryDirectory() as folder:
        served = Served("--bundle", config.bundle, log=Path(folder) / "server.log")
        with served:
            arm = Arm(served)
            jobs = [
                (kind, task, config.seed + index)
                for index in range(config.episodes)
                for task in arm.tasks
                for kind in results
            ]
            for kind, task, seed in track(jobs, "playing", console=console):
                tick = generator.randint(*KILL_TICKS) if kind == "kill" else None
                results[kind].append(arm.play(task, seed, tick))
            arm.close()
    report = _report(config, results)
    table = Table("", "success", "95 %", "episodes", "ticks without a chunk (median)", "chunk after ready, s")
    for kind, row in report["results"].items():
        low, high = row["ci95"]
        table.add_row(
            kind,
            f"{row['success_rate']:.1%}",
            f"{low:.1%} - {high:.1%}",
            str(row["episodes"]),
            str(row["starved_ticks_median"]),
            str(row["reconnect_s"]),
        )
    console.print(table)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")


def _report(config: KillsConfig, results: dict[str, list[Played]]) -> dict[str, Any]:
    report: dict[str, Any] = {
        "policy": config.bundle.name,
        "seeds": [config.seed, config.seed + config.episodes - 1],
        "command": f"python -m benchmarks.kills --episodes {config.episodes}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "results": {},
    }
    for kind, played in results.items():
        waits = sorted(each.reconnected for each in played if each.reconnected is not None)
        rate = success_rate(sum(each.success for each in played), len(played))
        report["results"][kind] = rate | {
            "failed": [f"{each.task}/{each.seed}" for each in played if not each.success],
            "by_task": {
                task: [sum(each.success for each in played if each.task == task), config.episodes]
                for task in dict.fromkeys(each.task for each in played)
            },
            "server_killed": len(played) if kind == "kill" else 0,
            "had_a_chunk_of_the_new_server": len(waits),
            "starved_ticks_median": statistics.median(each.starved for each in played),
            "reconnect_s": {
                "median": round(statistics.median(waits), 3),
                "p95": round(waits[int(0.95 * (len(waits) - 1))], 3),
                "max": round(waits[-1], 3),
            }
            if waits
            else None,
        }
    return report


if __name__ == "__main__":
    main(tyro.cli(KillsConfig))
