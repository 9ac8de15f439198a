"""Half an hour of robots, with a reload a minute and a kill every five.

``python -m benchmarks.endurance`` (part of ``make soak``) writes docs/results/endurance.json and ends with exit code 1
if a request was lost outside the kills, memory grew, or a file descriptor was left open.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.chaos.admin import load
from benchmarks.chaos.lab import another_version, open_files, resident_mb
from benchmarks.chaos.served import Served
from chunkcast.client import ChunkcastError
from chunkcast.client.aio import AsyncPolicyClient
from chunkcast.client.load.robots import made_observation
from chunkcast.client.reconnect import Backoff
from chunkcast.client.wire import ActionChunk, Dropped
from chunkcast.v1 import policy_pb2 as pb

GROWTH_MOST = 0.05
AFTER_READY_SECONDS = 2.0
"""A stream that breaks so soon after a restart was opened to the server before."""
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class EnduranceConfig:
    """Robots ask without end, while policies are reloaded and the server is killed."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy."""
    minutes: float = 30.0
    """In all."""
    robots: int = 32
    """Each with a stream."""
    rate: float = 20.0
    """Observations per second and robot."""
    reload_every: float = 60.0
    """Seconds from one reload to the next."""
    kill_every: float = 300.0
    """Seconds from one kill -9 to the next."""
    settling: float = 30.0
    """Seconds of a server's life until its memory is what it will be; robots come back meanwhile."""
    json: Path = Path("docs/results/endurance.json")
    """File for everything measured."""


@dataclass
class Life:
    """One process of the server, from its start to its end."""

    seconds: float = 0.0
    resident_mb: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Of resident memory from when it had settled to its end."""
        return self.resident_mb[-1] / self.resident_mb[0] - 1.0 if len(self.resident_mb) > 1 else 0.0


class Endurance:
    """The server, its robots, and what becomes of every request."""

    def __init__(self, config: EnduranceConfig, folder: Path) -> None:
        self._config, self._store = config, folder / "store"
        self._store.mkdir()
        self._versions = 0
        for _ in range(2):
            self._next_bundle()
        self.served = Served("--store", self._store, log=folder / "server.log")
        self.lives: list[Life] = []
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.reloads: Counter[str] = Counter()
        self.restarts: list[float] = []
        self.reconnected: list[float] = []
        self._breaking = False
        self._stopping = False

    def _next_bundle(self) -> str:
        """Another version in the store, which keeps the last two."""
        self._versions += 1
        name = f"v{self._versions}"
        aside = self._store / f".{name}"
        shutil.copytree(self._config.bundle, aside)
        another_version(aside, name)
        aside.rename(self._store / name)
        old = self._store / f"v{self._versions - 2}"
        if old.is_dir():
            shutil.rmtree(old)
        return name

    async def run(self, console: Console) -> None:
        """All of it."""
        await asyncio.to_thread(self.served.start)
        self.lives.append(Life())
        began = time.monotonic()
        async with AsyncPolicyClient(self.served.address) as client:
            spec = await client.get_policy()
        robots = [asyncio.create_task(self._robot(spec, index)) for index in range(self._config.robots)]
        total = self._config.minutes * 60.0
        reload_at, kill_at, measure_at = self._config.reload_every, self._config.kill_every, self._config.settling
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bars:
            bar = bars.add_task(f"{self._config.robots} robots", total=total)
            while (now := time.monotonic() - began) < total:
                for robot in robots:
                    if robot.done():
                        robot.result()
                if now >= kill_at:
                    kill_at += self._config.kill_every
                    await self._kill()
                elif now >= reload_at:
                    reload_at += self._config.reload_every
                    await self._reload()
                elif now >= measure_at:
                    measure_at = now + 2.0
                    self._measure()
                bars.update(bar, completed=now, description=f"{self.counts['answered']} answers")
                await asyncio.sleep(0.2)
        self._measure()
        self._stopping = True
        await asyncio.gather(*robots)
        self.exit_code = await asyncio.to_thread(self.served.stop)

    def _measure(self) -> None:
        life = self.lives[-1]
        life.seconds = time.monotonic() - self.served.ready_at
        if life.seconds >= self._config.settling:
            life.resident_mb.append(round(resident_mb(self.served.pid), 1))
            life.files.append(open_files(self.served.pid))

    async def _reload(self) -> None:
        name = await asyncio.to_thread(self._next_bundle)
        try:
            await asyncio.to_thread(load, self.served.admin_address, name, promote=True)
            self.reloads["done"] += 1
        except ChunkcastError as error:
            self.reloads[f"refused: {error}"] += 1

    async def _kill(self) -> None:
        self._measure()
        self._breaking = True
        killed = time.monotonic()
        await asyncio.to_thread(self.served.kill)
        await asyncio.to_thread(self.served.start)
        self.restarts.append(round(time.monotonic() - killed, 3))
        self.lives.append(Life())
        self._breaking = False

    def _excused(self) -> bool:
        """Whether a stream that breaks now breaks because of a kill."""
        just_started = self.served.starts > 1 and time.monotonic() - self.served.ready_at < AFTER_READY_SECONDS
        return self._breaking or just_started

    async def _robot(self, spec: pb.PolicySpec, index: int) -> None:
        observation = made_observation(spec, index, None)
        backoff, starts = Backoff(), 0
        async with AsyncPolicyClient(self.served.address, timeout=ANSWER_SECONDS) as client:
            while not self._stopping:
                try:
                    stream = await client.stream(spec.name, robot_id=f"endurance-{index}")
                    if starts and self.served.starts > starts:
                        self.reconnected.append(time.monotonic() - self.served.ready_at)
                    starts = self.served.starts
                    backoff.reset()
                    await self._ask(stream, observation, index)
                except ChunkcastError as error:
                    excused = self._excused()
                    self.counts["streams broken or refused in a kill" if excused else "broken"] += 1
                    if not excused:
                        self.lost.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(backoff.next_wait())

    async def _ask(self, stream: Any, observation: pb.Observation, index: int) -> None:
        """Ask at the rate, until the stream breaks."""
        observation.episode_id, observation.step = os.urandom(8).hex(), 0
        period = 1.0 / self._config.rate
        due = time.monotonic() + index * period / self._config.robots
        try:
            while not self._stopping:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = max(due + period, time.monotonic())
                observation.step += 1
                stream.send(observation)
                self.counts["sent"] += 1
                try:
                    _, answer = await stream.receive(ANSWER_SECONDS)
                except ChunkcastError:
                    self.counts["in flight when a stream broke"] += 1
                    raise
                if isinstance(answer, ActionChunk):
                    self.counts["answered"] += 1
                else:
                    self.counts["dropped" if isinstance(answer, Dropped) else "refused"] += 1
        finally:
            stream.close()

    def report(self) -> dict[str, Any]:
        """What was measured."""
        growth = max(life.growth for life in self.lives)
        files = max(max(life.files) - life.files[0] for life in self.lives if life.files)
        return {
            "counts": dict(self.counts),
            "broken_outside_kills": self.lost[:20],
            "reloads": dict(self.reloads),
            "kills": len(self.restarts),
            "restart_s": self.restarts,
            "stream_after_ready_s": _quantiles(self.reconnected),
            "lives": [
                {
                    "seconds": round(life.seconds),
                    "resident_mb": [life.resident_mb[0], life.resident_mb[-1]],
                    "growth": round(life.growth, 4),
                    "files": [life.files[0], life.files[-1], max(life.files)],
                }
                for life in self.lives
                if life.files
            ],
            "exit_code": self.exit_code,
            "holds": {
                "no request lost outside the kills": not self.lost
                and not self.counts["refused"]
                and not self.counts["dropped"]
                and self.counts["sent"] == self.counts["answered"] + self.counts["in flight when a stream broke"],
                "memory grew by less than 5 %": growth < GROWTH_MOST,
                "no file descriptor leaked": files <= 2,
                "every reload was done": set(self.reloads) <= {"done"},
                "it ended in order": self.exit_code == 0,
            },
        }


def _quantiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    return {
        "n": len(ordered),
        "median": round(ordered[len(ordered) // 2], 3),
        "max": round(ordered[-1], 3),
    }


def main(config: EnduranceConfig) -> None:
    """Exit code 1 if something did not hold."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        endurance = Endurance(config, Path(folder))
        asyncio.run(endurance.run(console))
        report = endurance.report()
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    report["command"] = (
        f"python -m benchmarks.endurance --minutes {config.minutes:g} --robots {config.robots} --rate {config.rate:g} "
        f"--reload-every {config.reload_every:g} --kill-every {config.kill_every:g}"
    )
    console.print(report)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")
    raise SystemExit(0 if all(report["holds"].values()) else 1)


if __name__ == "__main__":
    main(tyro.cli(EnduranceConfig))
