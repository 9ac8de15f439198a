"""Frames of all episodes in parallel processes, a shard at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.frames.frame_files import FrameSettings, Shard, write_manifest, write_shard
from chunkcast.training.frames.replay import FramesOfTick, replayed_frames
from chunkcast.training.processes import starting_workers, worker_processes

SHARD_EPISODES = 50


def render(
    folder: Path,
    demonstrations: Demonstrations,
    settings: FrameSettings,
    done: list[Shard],
    workers: int,
    on_episode: Callable[[], None] = lambda: None,
) -> None:
    """Render the episodes that ``done`` has not, and write their shards.

    Args:
        folder: of the demonstrations.
        settings: what to render.
        done: shards that are there.
        on_episode: called as each episode is rendered, and for each that was.

    Raises:
        DemonstrationsError: an episode does not go as it was recorded.
        RenderingUnavailable: nothing can be rendered here.
    """
    shards = list(done)
    first = shards[-1].last + 1 if shards else 0
    for _ in range(first):
        on_episode()
    episodes = len(demonstrations.episode_tasks)
    bounds = np.searchsorted(demonstrations.episode_index, np.arange(episodes + 1))
    write_manifest(folder, settings, shards, complete=False)
    with worker_processes(workers) as executor:
        with starting_workers():
            pending = deque(
                executor.submit(
                    replayed_frames,
                    demonstrations.episode_tasks[episode],
                    demonstrations.episode_seeds[episode],
                    demonstrations.states[bounds[episode] : bounds[episode + 1]],
                    demonstrations.executed[bounds[episode] : bounds[episode + 1]],
                    settings.cameras,
                    settings.every,
                    settings.quality,
                )
                for episode in range(first, episodes)
            )
        rendered: list[list[FramesOfTick]] = []
        for episode in range(first, episodes):
            rendered.append(pending.popleft().result())
            on_episode()
            if len(rendered) == SHARD_EPISODES or episode == episodes - 1:
                begin = episode + 1 - len(rendered)
                shards.append(write_shard(folder, len(shards), begin, rendered, settings.every))
                write_manifest(folder, settings, shards, complete=episode == episodes - 1)
                rendered = []
