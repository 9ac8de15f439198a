"""Time to 90 % on the six tasks: this trainer beside lerobot's own Diffusion Policy trainer, same demonstrations.

``python -m benchmarks.peers.lerobot_training`` (``make peers-training``) trains here until the schedule ends, plays the
policy through the server, and then gives lerobot ten times as long and plays what came of it: once with its own
defaults, a network for GPUs, and once with its network as narrow as this project's. Writes
docs/results/peers-training.json.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import signal
import struct
import subprocess
import sys
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


@dataclass(frozen=True)
class Peer:
    """A way to run lerobot's trainer."""

    name: str
    flags: tuple[str, ...]
    save_every: int
    """Steps between two checkpoints; those of its own network are 3 GB."""


PEERS = (
    Peer("its defaults", (), 20),
    Peer("narrow", ("--policy.down_dims=[64,128,256]",), 200),
)


@dataclass(frozen=True)
class TrainingPeersConfig:
    """Train with both."""

    lerobot_python: Path = Path(".venv-lerobot/bin/python")
    """Of an environment that has lerobot (``make lerobot`` makes it)."""
    data: Path = Path("data/six")
    """Demonstrations."""
    work: Path = Path("runs/peers-training")
    """Folder for everything; what is there is not made again."""
    epochs: int = 10
    """Of chunkcast-train."""
    episodes: int = 20
    """Of each task, of this trainer's policy."""
    lerobot_episodes: int = 5
    """Of each task, of lerobot's policy, whose chunks take seconds."""
    factor: float = 10.0
    """Times this trainer's seconds that lerobot's trains."""
    batch_size: int = 64
    """Of lerobot's: its own 8 would make less of two cores, its paper's is 64."""
    sampling_steps: int = 10
    """DDIM steps of its policy."""
    seed: int = 1_000_000
    """The first episode's."""
    json: Path = Path("docs/results/peers-training.json")
    """File for everything measured."""


def _ours(config: TrainingPeersConfig) -> dict[str, Any]:
    run, bundle, played = config.work / "ours", config.work / "ours-bundle", config.work / "ours.json"
    train = [str(BIN / "chunkcast-train"), "--data", str(config.data), "--out", str(run)]
    train += ["--epochs", str(config.epochs), "--keep-best", "0"]
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
        "command": shlex.join(["chunkcast-train", *train[1:]]),
    }


def _converted(config: TrainingPeersConfig) -> Path:
    root = config.work / "lerobot-data"
    if root.is_dir():
        return root
    demonstrations = read_demonstrations(config.data)
    tasks = demonstrations.tasks
    task = np.array([tasks.index(name) for name in demonstrations.episode_tasks])[demonstrations.episode_index]
    table = config.work / "table.npz"
    np.savez(
        table,
        states=np.asarray(demonstrations.states),
        codes=np.eye(len(tasks), dtype=np.float32)[task],
        actions=np.asarray(demonstrations.actions),
        episodes=demonstrations.episode_index,
    )
    subprocess.run([config.lerobot_python, SIDE, "convert", table, root], check=True, capture_output=True)
    return root


def _train_lerobot(config: TrainingPeersConfig, peer: Peer, root: Path, out: Path, seconds: float) -> dict[str, Any]:
    command = [
        *(str(config.lerobot_python), "-m", "lerobot.scripts.lerobot_train", "--policy.type=diffusion"),
        *("--dataset.repo_id=local/six", f"--dataset.root={root}", f"--output_dir={out}", "--policy.device=cpu"),
        *("--policy.push_to_hub=false", "--wandb.enable=false", f"--batch_size={config.batch_size}"),
        *("--steps=1000000", f"--save_freq={peer.save_every}", "--log_freq=10", "--num_workers=0", "--eval_freq=0"),
        *peer.flags,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    log_file = out.with_suffix(".log")
    with log_file.open("w") as log:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            else:
                raise RuntimeError(f"lerobot's trainer ended early; see {log_file}")
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return {"seconds": round(time.monotonic() - began, 1), "command": shlex.join(command[1:])}


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
            return np.frombuffer(taking.read(16), np.float32)

        yield act
        sending.close()


def _play_lerobot(config: TrainingPeersConfig, out: Path, console: Console) -> dict[str, Any]:
    checkpoints = sorted((out / "checkpoints").glob("[0-9]*/pretrained_model"))
    # The last may have been cut off while it was written.
    whole = [
        each for each in checkpoints if (each / "model.safetensors").is_file() and (each / "config.json").is_file()
    ]
    if not whole:
        raise RuntimeError(f"lerobot wrote no checkpoint in its time; see {out.with_suffix('.log')}")
    checkpoint = whole[-2] if len(whole) > 1 else whole[-1]
    tasks = read_demonstrations(config.data).tasks
    solved = dict.fromkeys(tasks, 0)
    jobs = [(task, config.seed + index) for index in range(config.lerobot_episodes) for task in tasks]
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
        "steps": int(checkpoint.parent.name),
        "parameters": _parameters(checkpoint / "model.safetensors"),
        "sampling": f"DDIM, {config.sampling_steps} steps",
    }


def main(config: TrainingPeersConfig) -> None:
    """Train, play, compare, write."""
    console = Console()
    config.work.mkdir(parents=True, exist_ok=True)
    ours = _ours(config)
    console.print(ours)
    root = _converted(config)
    theirs: dict[str, Any] = {}
    for peer in PEERS:
        out = config.work / f"lerobot-{peer.name.replace(' ', '-')}"
        trained = _train_lerobot(config, peer, root, out, config.factor * ours["seconds"])
        theirs[f"lerobot 0.4.4 diffusion, {peer.name}"] = trained | _play_lerobot(config, out, console)
        console.print(theirs)
    report = {
        "chunkcast": ours,
        **theirs,
        "seeds": [config.seed, config.seed + config.episodes - 1],
        "command": f"python -m benchmarks.peers.lerobot_training --epochs {config.epochs}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(TrainingPeersConfig))
