"""``chunkcast-load``: how many robots a server carries, and how long they wait, beside the bare network."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chunkcast.client.connection_flags import ConnectionFlags

if TYPE_CHECKING:
    from chunkcast.client.load.robots import Measured
    from chunkcast.client.private_server import PrivateServer

PERCENTILES = (50, 90, 99, 99.9)
BARE_SECONDS = 2.0
"""For each batch size, before and after the load."""
COMMON_BATCH = 0.05
"""A batch size that at least this share of the chunks was computed in is timed bare as well."""


class BadFlag(Exception):
    """A flag's value that makes no load. Not a ValueError, which tyro would draw a box around."""


@dataclass(frozen=True)
class LoadConfig(ConnectionFlags):
    """Let many robots ask a policy server for chunks; print and record throughput and latency beside the bare run's."""

    bundle: Path | None = None
    """A bundle: a private server is started for it, and its bare session.run is timed in the same run."""
    server: str | None = None
    """Or HOST:PORT of a running server; with --bundle too, the bare run of that bundle is timed beside it."""
    policy: str = ""
    """Policy name, where the server has several."""
    streams: int = 1
    """Robots, each with a stream of its own."""
    seconds: float = 10.0
    """How long to measure."""
    warm_up: float = 2.0
    """Seconds of load before that."""
    rate: float | None = None
    """Observations per second and robot, whatever comes back (open loop); by default each robot asks again as soon as
    it has its chunk (closed loop)."""
    deadline_ms: float = 50.0
    """Report the share of observations that got no chunk within this time."""
    image_quality: int | None = None
    """Send cameras' pictures as JPEG of this quality, 1 to 100; by default as they are."""
    server_flags: str = ""
    """Further flags for the private server, such as --server-flags="--max-batch 16 --max-delay-ms 2"."""
    threads: int = 1
    """ONNX Runtime's threads, of the private server and of the bare run."""
    cpus: tuple[int, ...] = ()
    """Processors that the robots' process keeps to; by default any."""
    json: Path | None = None
    """File for everything measured."""

    def __post_init__(self) -> None:
        """Refuse what makes no load."""
        if self.server is None and self.bundle is None:
            raise BadFlag("give --bundle DIR, or --server HOST:PORT of a running server")
        try:
            self.require_usable(self.server)
        except ValueError as error:
            raise BadFlag(str(error)) from None
        if self.streams < 1 or not 0.0 < self.seconds < math.inf or not 0.0 <= self.warm_up < math.inf:
            raise BadFlag(
                f"--streams is {self.streams}, --seconds {self.seconds} and --warm-up {self.warm_up}, expected at "
                "least 1, above 0 and 0 or more"
            )
        if self.image_quality is not None and not 1 <= self.image_quality <= 100:
            raise BadFlag(f"--image-quality must lie in [1, 100], got {self.image_quality}")
        if not 0.0 < self.deadline_ms < math.inf:
            raise BadFlag(f"--deadline-ms is {self.deadline_ms}, expected above 0")
        if self.rate is not None and not 0.0 < self.rate <= 10_000.0:
            raise BadFlag(f"--rate is {self.rate}, expected above 0 and at most 10000 observations a second")
        if self.bundle is not None and not (self.bundle / "policy.json").is_file():
            raise BadFlag(f"{self.bundle}/policy.json is missing; expected a bundle folder made by chunkcast-export")
        if self.server_flags and self.server is not None:
            raise BadFlag("--server-flags goes with a private server (--bundle alone)")


def main() -> None:
    """Console script: exit code 0 when the load ran, 1 if the server failed, 2 on bad input."""
    # What gRPC says of a server that is not there would stand beside the one line that says it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import tyro

        _run(tyro.cli(LoadConfig))
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; run pip install 'chunkcast[load,server]'", file=sys.stderr)
        raise SystemExit(2) from None
    except BadFlag as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run(config: LoadConfig) -> None:
    from chunkcast.client import ChunkcastError
    from chunkcast.client.load.report import print_report

    if config.cpus and not set(config.cpus) <= os.sched_getaffinity(0):
        raise BadFlag(f"--cpus is {list(config.cpus)}, expected some of {sorted(os.sched_getaffinity(0))}")
    try:
        summary = load_command(config)
    except ChunkcastError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print_report(summary)
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        aside = config.json.with_name(f".{config.json.name}.writing")
        aside.write_text(json.dumps(summary, indent=2) + "\n")
        os.replace(aside, config.json)


def load_command(config: LoadConfig) -> dict[str, Any]:
    """Measure; returns what goes into the JSON.

    Raises:
        ChunkcastError: the server cannot be used, or broke a stream.
    """
    from rich.console import Console

    from chunkcast.client.private_server import private_server

    console = Console(stderr=True)
    sizes = {1, config.streams}
    with console.status("timing the bare network"):
        before = _bare(config, sizes)
    if config.server is not None:
        summary, measured = _load(config, config.server, None, console)
    else:
        assert config.bundle is not None
        flags = ["--threads", str(config.threads), "--max-streams", str(config.streams + 8)]
        flags += shlex.split(config.server_flags)
        with private_server(config.bundle, *flags) as server:
            summary, measured = _load(config, server.address, server, console)
    with console.status("timing the bare network"):
        after = _bare(config, sizes | _common(measured))
    if after:
        summary["bare"] = _summarize_bare(before, after)
        summary["ratio"] = {
            "latency": round(summary["latency_ms"]["p50"] / summary["bare"]["latency_ms"], 3),
            "throughput": round(summary["chunks_per_second"] / summary["bare"]["chunks_per_second"], 3),
        }
    summary["command"] = shlex.join(["chunkcast-load", *sys.argv[1:]])
    summary["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    return summary


def _load(
    config: LoadConfig, target: str, server: PrivateServer | None, console: Any
) -> tuple[dict[str, Any], Measured]:
    import asyncio

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from chunkcast.client import PolicyClient
    from chunkcast.client.load.process import ProcessSample
    from chunkcast.client.load.robots import drive

    credentials = config.credentials()
    with PolicyClient(target, credentials=credentials) as client:
        client.wait_until_ready(10.0)
        spec = client.get_policy(config.policy)
    samples: list[tuple[ProcessSample, ProcessSample | None]] = []

    async def watched() -> Measured:
        load = asyncio.create_task(
            drive(
                target,
                spec,
                streams=config.streams,
                warm_up=config.warm_up,
                seconds=config.seconds,
                rate_hz=config.rate,
                image_quality=config.image_quality,
                credentials=credentials,
            )
        )
        with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console) as bars:
            bar = bars.add_task(f"{config.streams} robots", total=config.warm_up + config.seconds)
            await asyncio.wait({load}, timeout=config.warm_up)
            samples.append((ProcessSample.of(os.getpid()), ProcessSample.of(server.process.pid) if server else None))
            bars.update(bar, completed=config.warm_up)
            for second in range(1, int(config.seconds) + 1):
                await asyncio.wait({load}, timeout=1.0)
                bars.update(bar, completed=config.warm_up + second)
                if load.done():
                    break
            measured = await load
            samples.append((ProcessSample.of(os.getpid()), ProcessSample.of(server.process.pid) if server else None))
        return measured

    everywhere = os.sched_getaffinity(0)
    # After the server's start, which would inherit it; before the robots' threads, which should.
    os.sched_setaffinity(0, config.cpus or everywhere)
    try:
        measured = asyncio.run(watched())
    finally:
        os.sched_setaffinity(0, everywhere)
    return _summarize(config, spec.name, spec.version, measured, samples), measured


def _summarize(config: LoadConfig, policy: str, version: str, measured: Measured, samples: list[Any]) -> dict[str, Any]:
    import numpy as np

    from chunkcast.client import PolicyUnavailable

    if not measured.latency:
        raise PolicyUnavailable(f"no chunk came back; answers: {dict(measured.outcomes) or 'none'}")
    milliseconds = np.array(measured.latency) * 1e3
    in_time = int((milliseconds <= config.deadline_ms).sum())
    sizes = np.array(measured.batch_sizes)
    (client_first, server_first), (client_last, server_last) = samples
    chunks = len(measured.latency)
    summary: dict[str, Any] = {
        "policy": policy,
        "policy_version": version,
        "streams": config.streams,
        "loop": "closed" if config.rate is None else "open",
        "rate_hz": config.rate,
        "seconds": config.seconds,
        "threads": config.threads,
        "server_flags": config.server_flags,
        "chunks": chunks,
        "chunks_per_second": round(chunks / measured.seconds, 1),
        "latency_ms": {f"p{p:g}": round(float(np.percentile(milliseconds, p)), 3) for p in PERCENTILES},
        "stages_ms": {
            stage: {f"p{p}": round(float(np.percentile(values, p)) * 1e3, 3) for p in (50, 90, 99)}
            for stage, values in measured.stages.items()
        },
        "image_quality": config.image_quality,
        "observations": measured.sent,
        "outcomes": dict(measured.outcomes),
        "deadline_ms": config.deadline_ms,
        "deadline_missed": round(1.0 - in_time / max(1, measured.sent), 5),
        "batch_size": {
            "mean": round(float(sizes.mean()), 2),
            **{f"p{p}": int(np.percentile(sizes, p)) for p in (50, 90)},
            "max": int(sizes.max()),
        },
        "cpu_ms_per_chunk": {"robots": round((client_last.cpu - client_first.cpu) / chunks * 1e3, 4)},
    }
    if server_first and server_last:
        summary["cpu_ms_per_chunk"]["server"] = round((server_last.cpu - server_first.cpu) / chunks * 1e3, 4)
        summary["server_memory_mb"] = {
            "after_warm_up": round(server_first.resident / 1e6, 1),
            "at_the_end": round(server_last.resident / 1e6, 1),
            "growth": round(server_last.resident / server_first.resident - 1.0, 4),
        }
    return summary


def _common(measured: Measured) -> set[int]:
    """The batch sizes that a good share of the chunks was computed in."""
    sizes = measured.batch_sizes
    return {size for size in set(sizes) if sizes.count(size) >= COMMON_BATCH * len(sizes)}


def _bare(config: LoadConfig, sizes: set[int]) -> dict[str, dict[str, float]]:
    """The bare run at each batch size, in a process of its own; empty without a bundle."""
    from chunkcast.client import PolicyUnavailable

    if config.bundle is None:
        return {}
    command = [sys.executable, "-m", "chunkcast.server.bare_run", "--bundle", str(config.bundle)]
    command += ["--threads", str(config.threads), "--seconds", str(BARE_SECONDS)]
    command += ["--batch-sizes", *map(str, sorted(sizes))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
        raise PolicyUnavailable(f"the bare network could not be timed: {reason}")
    measured: dict[str, dict[str, float]] = json.loads(result.stdout)
    return measured


def _summarize_bare(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Both timings as one. A rate is the best of any batch size seen: the server is compared with the fastest way."""
    by_size: dict[str, dict[str, float]] = {}
    for size in sorted(after, key=int):
        runs = [timing[size] for timing in (before, after) if size in timing]
        by_size[size] = {key: round(sum(run[key] for run in runs) / len(runs), 4) for key in runs[0]}
    return {
        "latency_ms": by_size["1"]["p50_ms"],
        "chunks_per_second": max(timing["chunks_per_second"] for timing in by_size.values()),
        "by_batch_size": by_size,
    }


if __name__ == "__main__":
    main()
