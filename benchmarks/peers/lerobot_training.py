"""Time to 90 % on the six tasks: this trainer beside lerobot's own Diffusion Policy trainer, same demonstrations.

``python -m benchmarks.peers.lerobot_training`` (``make peers-training``) trains here until the schedule ends, plays the
policy through the server, and then gives lerobot ten times as long and plays what came of it: with its own network,
which is for GPUs, and with ``--narrowed`` also with that narrowed to a size like this project's. Its schedule ends with
its time: as many steps are asked for as fit, after a few that are timed. Writes docs/results/peers-training.json.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from safetensors import safe_open

from chunkcast.client.sim.metaworld_robot import STATE_KEY, MetaWorldRobot
from chunkcast.simulation.success import success_rate
from chunkcast.training.demonstrations.sources import read_demonstrations

BIN = Path(sys.executable).parent
SIDE = Path(__file__).with_name("lerobot_side.py")


WARMUP_STEPS = 500
"""lerobot's own; of a run that is shorter than ten times that, a tenth."""


@dataclass(frozen=True)
class Peer:
    """A way to run lerobot's trainer."""

    name: str
    flags: tuple[str, ...]
    timed_steps: int
    episodes: int
    """Of each task; chunks of its own network take seconds."""


PEERS = (
    Peer("its own network", (), 5, 1),
    Peer("narrowed", ("--policy.down_dims=[64,128,256]",), 50, 5),
)


@dataclass(frozen=True)
class TrainingPeersConfig:
    """Train with both."""

    lerobot_python: Path = Path(".venv-lerobot/bin/python")
    """Of an environment that has lerobot (``make lerobot`` makes it)."""
    data: Path = Path("data/six")
    """Demonstrations."""
    epochs: int = 5
    """Of chunkcast-train: enough for 90 % and more on the seeds for choices."""
    episodes: int = 20
    """Of each task, of this trainer's policy."""
    factor: float = 10.0
    """Times this trainer's seconds that lerobot's trains."""
    batch_size: int = 64
    """Of lerobot's: its own 8 would make less of two cores, its paper's is 64."""
    sampling_steps: int = 10
    """DDIM steps of its policy."""
    narrowed: bool = False
    """Beside its own network, one narrowed to a size like this project's: as long again."""
    seed: int = 1_000_000
    """The first episode's."""
    json: Path = Path("docs/results/peers-training.json")
    """File for everything measured."""


def _ours(config: TrainingPeersConfig, work: Path) -> dict[str, Any]:
    run, bundle, played = work / "ours", work / "ours-bundle", work / "ours.json"
    flags = ["--data", str(config.data), "--epochs", str(config.epochs), "--keep-best", "0"]
    train = [str(BIN / "chunkcast-train"), "--out", str(run), *flags]
    began = time.monotonic()
    subprocess.run(train, check=True)
    seconds = time.monotonic() - began
    export = [str(BIN / "chunkcast-export"), "--run", str(run), "--out", str(bundle)]
    subprocess.run(export, check=True)
    exported = time.monotonic() - began
    play = [str(BIN / "chunkcast-sim"), "--bundle", str(bundle), "--episodes", str(config.episodes)]
    subprocess.run([*play, "--seed", str(config.seed), "--json", str(played)], check=True)
    summary = json.loads(played.read_text())
    kept = ("success_rate", "successes", "episodes", "ci95")
    return {
        "seconds": round(seconds, 1),
        "seconds_to_bundle": round(exported, 1),
        **{key: summary[key] for key in kept},
        "seeds": [config.seed, config.seed + config.episodes - 1],
        "command": shlex.join(["chunkcast-train", *flags]),
    }


def _converted(config: TrainingPeersConfig, work: Path) -> Path:
    root = work / "lerobot-data"
    demonstrations = read_demonstrations(config.data)
    tasks = demonstrations.tasks
    task = np.array([tasks.index(name) for name in demonstrations.episode_tasks])[demonstrations.episode_index]
    table = work / "table.npz"
    np.savez(
        table,
        states=np.asarray(demonstrations.states),
        codes=np.eye(len(tasks), dtype=np.float32)[task],
        actions=np.asarray(demonstrations.actions),
        episodes=demonstrations.episode_index,
    )
    subprocess.run([config.lerobot_python, SIDE, "convert", table, root], check=True, capture_output=True)
    return root


def _run_lerobot(config: TrainingPeersConfig, root: Path, out: Path, *flags: str) -> tuple[list[str], str, float]:
    """Its trainer to the end: the command's flags, what it logged, and the seconds it took."""
    flags = (
        *("--policy.type=diffusion", "--policy.device=cpu", "--policy.push_to_hub=false", "--wandb.enable=false"),
        *("--eval_freq=0", "--num_workers=0", "--log_freq=1", f"--batch_size={config.batch_size}", *flags),
    )
    folders = ("--dataset.repo_id=local/six", f"--dataset.root={root}", f"--output_dir={out}")
    command = [str(config.lerobot_python), "-m", "lerobot.scripts.lerobot_train", *folders, *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"lerobot's trainer failed:\n{done.stderr[-2000:]}")
    return list(flags), done.stderr + done.stdout, time.monotonic() - began


def _train_lerobot(config: TrainingPeersConfig, peer: Peer, root: Path, out: Path, seconds: float) -> dict[str, Any]:
    timed = ("--save_checkpoint=false", f"--steps={peer.timed_steps}")
    _, log, _ = _run_lerobot(config, root, out.with_name(f"{out.name}-timed"), *peer.flags, *timed)
    each = [sum(map(float, found)) for found in re.findall(r"updt_s:([\d.]+) data_s:([\d.]+)", log)]
    steps = math.ceil(seconds / min(each))  # no less than its time
    warmup = min(WARMUP_STEPS, steps // 10)
    schedule = (f"--steps={steps}", f"--save_freq={steps}", f"--policy.scheduler_warmup_steps={warmup}")
    flags, log, took = _run_lerobot(config, root, out, *peer.flags, *schedule)
    losses = [float(found) for found in re.findall(r" loss:([\d.]+)", log)]
    return {
        "seconds": round(took, 1),
        "steps": steps,
        "warmup_steps": warmup,
        "losses_every_tenth": losses[:: max(1, len(losses) // 10)],
        "command": shlex.join(["lerobot-train", *flags]),
    }


def _parameters(weights: Path) -> int:
    with safe_open(weights, "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


@contextmanager
def _lerobot_policy(config: TrainingPeersConfig, checkpoint: Path) -> Iterator[Any]:
    command = [str(config.lerobot_python), str(SIDE), "answer", str(checkpoint), str(config.sampling_steps)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sending, taking = process.stdin, process.stdout

        def act(observation: np.ndarray[Any, Any], *, new: bool) -> np.ndarray[Any, Any]:
            sending.write(struct.pack("<I", int(new)) + observation.astype(np.float32).tobytes())
            sending.flush()
            action = np.frombuffer(taking.read(16), np.float32)
            if not np.isfinite(action).all():
                raise RuntimeError(f"lerobot's policy answered {action}")
            return action

        yield act
        sending.close()


def _play_lerobot(config: TrainingPeersConfig, peer: Peer, checkpoint: Path, console: Console) -> dict[str, Any]:
    tasks = read_demonstrations(config.data).tasks
    solved = dict.fromkeys(tasks, 0)
    jobs = [(task, config.seed + index) for index in range(peer.episodes) for task in tasks]
    with _lerobot_policy(config, checkpoint) as act:
        for task, seed in track(jobs, "lerobot's policy plays", console=console):
            robot, code = MetaWorldRobot(task), np.eye(len(tasks))[tasks.index(task)]
            robot.begin_episode(seed)
            new = True
            while not robot.done:
                state = robot.observe()[STATE_KEY]
                robot.act(np.clip(act(np.concatenate([state, code]), new=new), -1.0, 1.0))
                new = False
            solved[task] += robot.success
    return {
        **success_rate(sum(solved.values()), len(jobs)),
        "by_task": solved,
        "seeds": [config.seed, config.seed + peer.episodes - 1],
        "parameters": _parameters(checkpoint / "model.safetensors"),
        "sampling": f"DDIM, {config.sampling_steps} steps",
    }


def _trained(config: TrainingPeersConfig, console: Console) -> dict[str, Any]:
    """Both trainers' work, played."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        report = {"chunkcast": _ours(config, work)}
        console.print(report)
        seconds = config.factor * report["chunkcast"]["seconds"]
        root = _converted(config, work)
        for peer in PEERS if config.narrowed else PEERS[:1]:
            out = work / f"lerobot-{peer.name.replace(' ', '-')}"
            with console.status(f"lerobot, {peer.name}, trains for {seconds:.0f} s"):
                trained = _train_lerobot(config, peer, root, out, seconds)
            checkpoint = (out / "checkpoints/last").resolve() / "pretrained_model"
            name = f"lerobot 0.4.4 diffusion, {peer.name}"
            report[name] = trained | _play_lerobot(config, peer, checkpoint, console)
            console.print(report[name])
    return report


def main(config: TrainingPeersConfig) -> None:
    """Train, play, compare, write."""
    report: dict[str, Any] = {
        **_trained(config, Console()),
        "command": shlex.join(["python", "-m", "benchmarks.peers.lerobot_training", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(TrainingPeersConfig))
