"""``chunkcast-sim``: success measured through the server, on MetaWorld."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from chunkcast.client.connection_flags import ConnectionFlags

if TYPE_CHECKING:
    from chunkcast.v1 import policy_pb2 as pb

EVALUATION_SEED = 1_000_000
"""Far from any seed that demonstrations take from 0 on, and from those that choices are made on (500,000)."""


MAX_SEED = 2**32
"""So that seeds stay what every generator takes."""


HELD_OUT: Literal["held_out"] = "held_out"


INTERRUPT_SECONDS = 10.0
"""For workers and server to end in order."""


class BadFlag(Exception):
    """A flag's value that cannot be played. Not a ValueError, which tyro would draw a box around."""


@dataclass(frozen=True)
class SimConfig(ConnectionFlags):
    """Play MetaWorld episodes against a policy server, in parallel processes; print and record success and latency."""

    server: str | None = None
    """HOST:PORT of a running server."""
    bundle: Path | None = None
    """Or a bundle: a private server is started for it and stopped afterwards."""
    policy: str = ""
    """Policy name, where the server has several."""
    tasks: str = ""
    """MetaWorld tasks such as drawer-open-v3 or drawer-open, separated by commas or spaces; by default every task that
    the policy knows."""
    episodes: int = 20
    """Episodes of each task."""
    seed: int = EVALUATION_SEED
    """First episode seed; further episodes take the following ones. Seeds of demonstrations are warned of."""
    execute_steps: int | None = None
    """Actions of a chunk to execute before the next one; by default what the policy advises."""
    delay_ticks: int = 0
    """Control ticks from an observation to its chunk, injected; the robot plays on from the old chunk meanwhile."""
    overlap: Literal["replace", "ensemble", "real-time-chunking"] = "replace"
    """What happens where two chunks know the same tick: the new one replaces, both are averaged, or the actions that
    play meanwhile are sent along for the policy to continue."""
    workers: int = os.cpu_count() or 1
    """Parallel processes, each a robot with its own stream."""
    ray_address: str = ""
    """A Ray cluster that plays in place of --workers, an episode a processor, such as auto or ray://HOST:10001. Its
    machines must reach --server."""
    instructions: Path | None = None
    """Table of instructions (TOML) to tell the policy from, in --phrasing's words; by default it is told its own."""
    phrasing: Literal["instruction", "paraphrases", "held_out"] | None = None
    """Which of the table's texts; by default those held out from training. An episode takes a task's in turn."""
    text_encoders: Path | None = None
    """Of the private server (chunkcast-serve --text-encoders)."""
    image_quality: int | None = None
    """Send cameras' pictures as JPEG of this quality, 1 to 100; by default as they are."""
    fault: str = ""
    """NAME[:SIZE][@TICK] of a fault of the robot, to see what the server's health says of it: sensor-bias,
    sensor-noise, frozen, swapped, wrong-task, action-scale, delay, gripper-stuck, object-moved; of cameras occluded,
    dark, blurred, camera-moved, frozen-picture."""
    json: Path | None = None
    """File for everything measured."""
    trace: Path | None = None
    """Folder for every episode's observations and chunks, as NumPy files: what health statistics are made of."""
    video: Path | None = None
    """Folder for films of each task's first episodes."""
    video_episodes: int = 1
    """Episodes of each task to film."""
    video_format: Literal["mp4", "gif"] = "mp4"
    """Of the films."""
    health_share: float | None = None
    """Of the private server (chunkcast-serve --health-share); a simulation runs faster than its robot would, so it
    takes 1 to judge every chunk."""
    metrics: bool = False
    """Also print some of the private server's Prometheus metrics."""

    def __post_init__(self) -> None:
        """Refuse what cannot be played."""
        if (self.server is None) == (self.bundle is None):
            raise BadFlag("give either --server HOST:PORT or --bundle DIR")
        try:
            self.require_usable(self.server)
        except ValueError as error:
            raise BadFlag(str(error)) from None
        if self.ray_address and (self.bundle is not None or self.video is not None or self.trace is not None):
            raise BadFlag(
                "--ray-address plays on other machines, which reach --server and not a private one's loopback address, "
                "and keep no --video or --trace"
            )
        if self.metrics and self.bundle is None:
            raise BadFlag("--metrics goes with --bundle; a running server has its own page")
        if self.health_share is not None and self.bundle is None:
            raise BadFlag("--health-share goes with --bundle; it is a flag of chunkcast-serve")
        if self.text_encoders is not None and self.bundle is None:
            raise BadFlag("--text-encoders goes with --bundle; it is a flag of chunkcast-serve")
        if self.phrasing is not None and self.instructions is None:
            raise BadFlag("--phrasing goes with --instructions FILE, the table that it chooses from")
        if self.image_quality is not None and not 1 <= self.image_quality <= 100:
            raise BadFlag(f"--image-quality must lie in [1, 100], got {self.image_quality}")
        if self.episodes < 1 or self.workers < 1:
            raise BadFlag(f"--episodes and --workers must be at least 1, got {self.episodes} and {self.workers}")
        if not 0 <= self.seed <= MAX_SEED:
            raise BadFlag(f"--seed must lie in [0, {MAX_SEED}], got {self.seed}")
        if self.server is not None and not re.fullmatch(r"\S+:\d{1,5}", self.server):
            raise BadFlag(f"--server is {self.server!r}, expected HOST:PORT such as 127.0.0.1:50051")
        if self.bundle is not None and not (self.bundle / "policy.json").is_file():
            raise BadFlag(f"{self.bundle}/policy.json is missing; expected a bundle folder made by chunkcast-export")


def main() -> None:
    """Console script: exit code 0 when every episode was played, 1 if the server failed, 2 on bad input."""
    # What gRPC says of a server that is not there would stand beside the one line that says it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A supervisor's SIGTERM ends what was started just as Ctrl-C does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        import tyro

        _run(tyro.cli(SimConfig))
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; run pip install 'chunkcast[sim]'", file=sys.stderr)
        raise SystemExit(2) from None
    except BadFlag as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End as Ctrl-C does, and if that hangs, end all the same.

    An interrupt may strike inside gRPC while it holds a lock that its own destructor then waits for, forever. Workers
    end with their parent, and the server with the pipe that it holds.
    """

    def give_up() -> None:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    timer = threading.Timer(INTERRUPT_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _run(config: SimConfig) -> None:
    from chunkcast.client import ChunkcastError
    from chunkcast.client.private_server import private_server
    from chunkcast.simulation.errors import SimulationError
    from chunkcast.simulation.rendering import choose_gl

    # A long measurement must not be lost for want of a place to write it.
    for folder in (config.video, config.trace, config.json and config.json.parent):
        _require_writable(folder)
    if config.json and config.json.is_dir():
        raise BadFlag(f"--json is {config.json}, a folder; expected a file")
    try:
        if config.video:
            # Workers start ffmpeg while gRPC's threads run; gRPC would log that it cannot follow through the fork.
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
            choose_gl()
        if config.bundle:
            given = {"--health-share": config.health_share, "--text-encoders": config.text_encoders}
            flags = [str(part) for flag, value in given.items() if value is not None for part in (flag, value)]
            with private_server(config.bundle, *flags) as server:
                sim_command(config, server.address)
                if config.metrics:
                    from chunkcast.client.sim.report import print_metrics

                    print_metrics(server.metrics_address)
        else:
            assert config.server is not None
            sim_command(config, config.server)
    except (ChunkcastError, SimulationError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _require_writable(folder: Path | None) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadFlag(f"{folder} cannot be written ({error.strerror})") from None


def sim_command(config: SimConfig, target: str) -> None:
    """Play, print the table, write the JSON.

    Raises:
        BadFlag: a task is unknown to the policy, or the chunk shorter than what is to be executed.
        ChunkcastError: the server cannot be used.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from chunkcast.client import PlaybackConfig, PolicyClient
    from chunkcast.client.playback import Playback
    from chunkcast.client.sim.benchmark import expected_success, play_all, summarize
    from chunkcast.client.sim.episode import CONNECT_SECONDS, EpisodeResult
    from chunkcast.client.sim.faults import described
    from chunkcast.client.sim.report import print_report
    from chunkcast.simulation.policy_cameras import policy_cameras
    from chunkcast.simulation.rendering import choose_gl

    credentials = config.credentials()
    with PolicyClient(target, credentials=credentials) as client:
        client.wait_until_ready(CONNECT_SECONDS)
        spec = client.get_policy(config.policy)
    jobs = _jobs(config, spec)
    if policy_cameras(spec):
        choose_gl(software=True)
    playback = PlaybackConfig(
        execute_steps=config.execute_steps,
        overlap=config.overlap,
        simulated_delay=config.delay_ticks,
        image_quality=config.image_quality,
    )
    try:
        Playback(spec, playback, CONNECT_SECONDS)
    except ValueError as error:
        raise BadFlag(str(error)) from None
    seeds_seen = _warn_of_seen_seeds(config, spec)

    console = Console(stderr=True)
    columns = (
        TextColumn("playing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[solved]} solved"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(jobs), solved=0)
        solved = 0

        def on_episode(result: EpisodeResult) -> None:
            nonlocal solved
            solved += result.success
            progress.update(bar, advance=1, solved=solved)

        results = play_all(
            jobs,
            target=target,
            credentials=credentials,
            policy=spec.name,
            playback=playback,
            workers=min(config.workers, len(jobs)),
            on_episode=on_episode,
            ray_address=config.ray_address,
        )
    if not any(result.chunk_seconds for result in results):
        raise BadFlag(
            f"{spec.name} was told nothing that it understands, all {len(results)} episodes were refused: "
            f"{results[0].refusal}"
        )
    summary: dict[str, Any] = {
        "policy": spec.name,
        "policy_version": spec.version,
        "evaluations": spec.sampler.evaluations,
        "execute_steps": config.execute_steps or spec.action.execute_steps,
        "delay_ticks": config.delay_ticks,
        "overlap": config.overlap,
        "image_quality": config.image_quality,
        "phrasing": (config.phrasing or HELD_OUT) if config.instructions else "instruction",
        "instructions_sha256": _sha256(config.instructions) if config.instructions else None,
        "fault": config.fault or None,
        "fault_meaning": described(jobs[0].fault) if jobs[0].fault else None,
        "first_seed": config.seed,
        "last_seed": config.seed + config.episodes - 1,
        "seeds_seen_in_training": seeds_seen,
        "expected": expected_success(spec),
        **summarize(results),
        "seconds": round(time.monotonic() - started, 2),
        "workers": config.workers,
        "ray_address": config.ray_address or None,
        "command": shlex.join(["chunkcast-sim", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    print_report(summary)
    if config.json:
        aside = config.json.with_name(f".{config.json.name}.writing")
        aside.write_text(json.dumps(summary, indent=2) + "\n")
        os.replace(aside, config.json)


def _jobs(config: SimConfig, spec: pb.PolicySpec) -> list[Any]:
    from chunkcast.client.sim.episode import EpisodeJob
    from chunkcast.client.sim.faults import UnknownFault, faults_for, parse_fault
    from chunkcast.client.sim.phrasing import BadTable, read_phrases, task_of

    try:
        fault = parse_fault(config.fault) if config.fault else None
    except UnknownFault as error:
        raise BadFlag(str(error)) from None
    if fault and fault.name not in (noticeable := faults_for(spec)):
        raise BadFlag(
            f"--fault {fault.name} changes nothing that {spec.name} is shown; expected one of {', '.join(noticeable)}"
        )
    texts = {task_of(instruction): instruction.text for instruction in spec.instructions}
    known = list(texts)
    asked = (task for task in re.split(r"[,\s]+", config.tasks) if task)
    named = (f"{task}-v3" if task not in texts and f"{task}-v3" in texts else task for task in asked)
    # A task named twice would count its episodes twice.
    tasks = list(dict.fromkeys(named)) or known
    horizon = spec.action.horizon
    if config.execute_steps is not None and not 1 <= config.execute_steps <= horizon:
        raise BadFlag(f"--execute-steps is {config.execute_steps}, expected 1 to {horizon}, the horizon of {spec.name}")
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise BadFlag(f"{spec.name} does not know {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}")
    phrases: Mapping[str, Sequence[str]] = {task: [texts[task]] for task in tasks}
    if config.instructions:
        try:
            phrases = read_phrases(config.instructions, config.phrasing or HELD_OUT, tasks)
        except BadTable as error:
            raise BadFlag(str(error)) from None
    return [
        EpisodeJob(
            task,
            config.seed + i,
            phrases[task][i % len(phrases[task])],
            fault=fault,
            video=_video_file(config, task, i),
            trace=config.trace / f"{task}-{config.seed + i}.npz" if config.trace else None,
        )
        for task in tasks
        for i in range(config.episodes)
    ]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _video_file(config: SimConfig, task: str, episode: int) -> Path | None:
    if config.video is None or episode >= config.video_episodes:
        return None
    return config.video / f"{task}-{config.seed + episode}.{config.video_format}"


def _warn_of_seen_seeds(config: SimConfig, spec: pb.PolicySpec) -> bool:
    """Whether an episode's seed was a demonstration's: success on those proves less than it seems."""
    first, last = spec.training.first_seed, spec.training.last_seed
    seen = config.seed <= last and config.seed + config.episodes - 1 >= first
    if seen:
        print(f"warning: seeds {first} to {last} were demonstrated in training; choose others", file=sys.stderr)
    return seen


if __name__ == "__main__":
    main()
