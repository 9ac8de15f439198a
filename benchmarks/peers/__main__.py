"""The time of a chunk from chunkcast and from what people use instead, the same network in all, in one run.

``python -m benchmarks.peers [--run runs/six] [--json FILE]``, from the repository's root (``make peers``)

- *chunkcast*: a private ``chunkcast-serve`` and robots with the asyncio client, all in one process.
- *openpi-client*: the network in eager torch behind the protocol of openpi's client (websocket and msgpack), on a
  server that handles one request at a time as openpi's does; robots with the real client from PyPI, a thread each.
- *in process*: the network in eager torch, called for one robot after the other without any transport.
- *bare session.run*: one observation through the bundle's graph in ONNX Runtime, the floor.

All robots run in a closed loop: each waits for its chunk and asks again at once. Blocks of all alternate, so that a
machine whose speed drifts slows all; percentiles are over the blocks together. The peers' network has the bundle's
shapes and evaluations; without ``--run`` its weights are random, of which the time does not depend. Nothing is kept to
a processor.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro

from benchmarks.peers.child import PeersError, run_robots, running_server
from benchmarks.peers.chunkcast_robots import typical_observation
from benchmarks.peers.eager_torch import PROMPT_KEY, EagerPolicy, NetworkConfig, served_in_turn
from benchmarks.peers.report import SYSTEMS, bare_summary, machine, print_report, summary_of, versions
from chunkcast.client import ChunkcastError
from chunkcast.client.private_server import private_server
from chunkcast.server.bare_run import BareRunConfig
from chunkcast.server.bare_run import measure as measure_bare_run
from chunkcast.server.errors import BundleError
from chunkcast.training.errors import TrainingError

Block = dict[str, Any]
"""What one system did in one block: ``latency_ms`` and ``inference_ms`` of each chunk, and what else it tells."""


@dataclass(frozen=True)
class PeersConfig:
    """Compare the time of a chunk with the peers'."""

    network: tyro.conf.OmitArgPrefixes[NetworkConfig]
    """The network that all of them run."""
    robots: tuple[int, ...] = (1, 8, 32)
    """Numbers of robots to measure with."""
    seconds: float = 5.0
    """Length of a block, its warm-up apart."""
    warm_up: float = 1.0
    """Seconds at the beginning of each block that are not counted."""
    repeats: int = 3
    """Blocks of each system for each number of robots."""
    threads: int = 1
    """ONNX Runtime's threads inside one run, of chunkcast's server and of the bare run."""
    peers_venv: Path = Path(".venv-peers")
    """Environment with openpi-client, which needs another numpy than chunkcast's."""
    json: Path | None = None
    """File for everything measured."""

    def __post_init__(self) -> None:
        """Refuse what measures nothing, and what cannot run, before anything starts."""
        if not self.robots or min(self.robots) < 1 or self.repeats < 1 or self.seconds <= 0 or self.warm_up < 0:
            raise PeersError("--robots and --repeats must be at least 1, --seconds above 0, --warm-up 0 or more")
        if not any(self.peers_venv.glob("lib/python*/site-packages/openpi_client")):
            raise PeersError(f"{self.peers_venv} has no openpi-client; run make peers, which installs it there")
        for module in ("websockets", "msgpack"):
            if find_spec(module) is None:
                raise PeersError(f"{module} is not installed in {sys.prefix}; run pip install websockets msgpack")

    @property
    def peers_python(self) -> Path:
        """The interpreter there."""
        return self.peers_venv / "bin" / "python"


def commands(config: PeersConfig) -> dict[str, list[str]]:
    """The programs that are started beside chunkcast's server."""
    network = config.network
    server = [sys.executable, "-m", "benchmarks.peers.openpi_server", "--bundle", str(network.bundle)]
    server += ["--width", str(network.width), "--blocks", str(network.blocks)]
    server += ["--torch-threads", str(network.torch_threads), *(["--run", str(network.run)] if network.run else [])]
    return {
        "openpi_server": server,
        "openpi_robots": [str(config.peers_python), str(Path(__file__).with_name("openpi_robots.py"))],
        "chunkcast_robots": [sys.executable, "-m", "benchmarks.peers.chunkcast_robots"],
    }


def measure(config: PeersConfig, policy: EagerPolicy) -> tuple[dict[int, dict[str, list[Block]]], list[Any]]:
    """Blocks by number of robots and system, and the bare run's summaries, one a repeat.

    Raises:
        ChunkcastError, PeersError: a server or its robots failed.
    """
    observation, instruction = typical_observation(policy.spec)
    prompted = {**observation, PROMPT_KEY: instruction}
    policy.warm_up(prompted)
    programs = commands(config)
    blocks: dict[int, dict[str, list[Block]]] = {n: {name: [] for name in SYSTEMS} for n in config.robots}
    bare = []
    with ExitStack() as servers:
        ours = servers.enter_context(private_server(config.network.bundle, "--threads", str(config.threads)))
        port = servers.enter_context(running_server(programs["openpi_server"]))
        request = {
            "observation": {key: value.tolist() for key, value in observation.items()},
            "instruction": instruction,
            "address": ours.address,
            "port": port,
        }
        for repeat in range(config.repeats):
            print(f"repeat {repeat + 1} of {config.repeats}", file=sys.stderr, flush=True)
            floor = BareRunConfig(config.network.bundle, threads=config.threads, seconds=config.seconds, blocks=1)
            bare.append(measure_bare_run(floor)["1"])
            for robots in config.robots:
                timing: dict[str, Any] = {"robots": robots, "seconds": config.seconds, "warm_up": config.warm_up}
                asked = {**request, **timing}
                run: dict[str, Callable[[], Block]] = {
                    "chunkcast": partial(run_robots, programs["chunkcast_robots"], asked),
                    "openpi-client": partial(run_robots, programs["openpi_robots"], asked),
                    "in process": partial(served_in_turn, partial(policy.infer, prompted), **timing),
                }
                first = repeat % len(SYSTEMS)  # each begins once
                for name in SYSTEMS[first:] + SYSTEMS[:first]:
                    blocks[robots][name].append(run[name]())
    return blocks, bare


def main() -> None:
    """Measure, print, record; exit code 1 if a system failed, 2 on bad input."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = tyro.cli(PeersConfig, prog="python -m benchmarks.peers")
        load = machine()
        policy = EagerPolicy(config.network)
        blocks, bare = measure(config, policy)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (PeersError, BundleError, TrainingError, ChunkcastError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, ChunkcastError) else 2) from None
    spec = policy.spec
    summary: dict[str, Any] = {
        "policy": spec.name,
        "policy_version": spec.version,
        "evaluations": spec.sampler.evaluations,
        "parameters": spec.training.parameters,
        "weights_of_the_peers": policy.weights,
        "threads": {"onnxruntime": config.threads, "torch": config.network.torch_threads},
        "seconds": config.seconds,
        "warm_up": config.warm_up,
        "repeats": config.repeats,
        "bare_session_run": bare_summary(bare),
        "robots": {str(robots): summary_of(systems, config.seconds) for robots, systems in blocks.items()},
        "machine": load,
        "versions": versions(blocks),
        "commands": {"benchmark": ["python", "-m", "benchmarks.peers", *sys.argv[1:]], **commands(config)},
    }
    print_report(summary)
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
