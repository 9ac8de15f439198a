"""What a policy with cameras sees of each of its tasks: at an episode's start, in its middle and at its end.

``python -m benchmarks.task_pictures --out docs/tasks-rgb.png`` serves the policy, plays an episode of each task, and
draws the pictures that it was sent, each view above the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro

from chunkcast.client import ChunkPlayer, PlaybackConfig, PolicyClient
from chunkcast.client.private_server import private_server
from chunkcast.client.sim.metaworld_robot import MetaWorldRobot, told_entries
from chunkcast.client.sim.phrasing import task_of
from chunkcast.simulation.policy_cameras import IMAGE_PREFIX, policy_cameras
from chunkcast.simulation.rendering import choose_gl
from chunkcast.training.export.bundle_writer import read_spec
from chunkcast.v1 import policy_pb2 as pb

MOMENTS = ("start", "middle", "end")
CELL = 1.6
"""Inches to a side of a picture."""


@dataclass(frozen=True)
class TaskPicturesConfig:
    """Draw what a policy sees of its tasks."""

    out: Path
    """PNG file."""
    bundle: Path = Path("policies/metaworld-six-rgb")
    """The policy."""
    seed: int = 500_000
    """Of the episodes."""


def seen_in_an_episode(player: ChunkPlayer, task: str, seed: int) -> list[dict[str, npt.NDArray[Any]]]:
    """The pictures of every tick at which a chunk could have been asked for."""
    spec = player.spec
    robot = MetaWorldRobot(task, policy_cameras(spec), told_entries(spec))
    robot.begin_episode(seed)
    player.begin_episode(task, noise_seed=seed)
    pictures = []
    while not robot.done:
        observation = robot.observe()
        if robot.steps % spec.action.execute_steps == 0:
            pictures.append({key: observation[key] for key in observation if key.startswith(IMAGE_PREFIX)})
        robot.act(player.next_action(observation))
    pictures.append({key: robot.observe()[key] for key in pictures[0]})
    return pictures


def draw(spec: pb.PolicySpec, episodes: dict[str, list[dict[str, npt.NDArray[Any]]]], file: Path) -> None:
    """A column of three pictures a task, a row a view."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    views = [entry.key for entry in spec.observations if entry.key.startswith(IMAGE_PREFIX)]
    across = 2
    rows, columns = -(-len(episodes) // across) * len(views), across * len(MOMENTS)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * CELL, rows * CELL), layout="constrained")
    for number, (task, pictures) in enumerate(episodes.items()):
        moments = [pictures[index] for index in np.linspace(0, len(pictures) - 1, len(MOMENTS)).astype(int)]
        for row, view in enumerate(views):
            for column, seen in enumerate(moments):
                cell = axes[number // across * len(views) + row, number % across * len(MOMENTS) + column]
                cell.imshow(seen[view], interpolation="nearest")
                if row == 0:
                    cell.set_title(f"{task.removesuffix('-v3')}: {MOMENTS[column]}", fontsize=7)
    for cell in axes.flat:
        cell.set_axis_off()
    figure.savefig(file, dpi=96)


def main(config: TaskPicturesConfig) -> None:
    """Serve, play, draw."""
    choose_gl(software=True)
    spec = read_spec(config.bundle)
    playback = PlaybackConfig(simulated_delay=0)
    with (
        private_server(config.bundle) as server,
        PolicyClient(server.address) as client,
        ChunkPlayer(client, config=playback, timeout=30.0) as player,
    ):
        tasks = [task_of(instruction) for instruction in spec.instructions]
        episodes = {task: seen_in_an_episode(player, task, config.seed) for task in tasks}
    draw(spec, episodes, config.out)


if __name__ == "__main__":
    main(tyro.cli(TaskPicturesConfig))
