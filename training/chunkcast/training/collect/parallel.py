"""Many expert episodes in parallel processes, with a result that does not depend on their timing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from chunkcast.training.collect.expert_episode import record_expert_episode
from chunkcast.training.demonstrations.episodes import Episode
from chunkcast.training.errors import TrainingError
from chunkcast.training.processes import starting_workers, worker_processes

MAX_ATTEMPTS_PER_EPISODE = 10
"""Below one success in ten, the expert or the noise is wrong, and more attempts would not be demonstrations."""


@dataclass(frozen=True)
class TaskDemonstrations:
    """The successful episodes of one task, and how many attempts they took."""

    task: str
    attempts: int
    episodes: list[Episode]

    @property
    def expert_success_rate(self) -> float:
        """Share of attempts in which the expert, with noise, solved the task."""
        return len(self.episodes) / self.attempts


def collect(
    tasks: Sequence[str],
    episodes_per_task: int,
    first_seed: int,
    noise: float,
    workers: int,
    on_episode: Callable[[str, bool], None] = lambda task, kept: None,
    ray_address: str = "",
) -> list[TaskDemonstrations]:
    """For each task, the first ``episodes_per_task`` seeds from ``first_seed`` on whose episode succeeds.

    The same arguments give the same episodes for any number of workers.

    Args:
        on_episode: called with the task and whether the episode was kept, as each is done.
        ray_address: of a Ray cluster that records in place of the workers.

    Raises:
        TrainingError: a task's expert succeeds in fewer than one of ``MAX_ATTEMPTS_PER_EPISODE`` attempts.
    """
    results = []
    with worker_processes(workers, ray_address) as executor:
        with starting_workers():
            pending: dict[str, deque[Future[Episode | None]]] = {
                task: deque(
                    executor.submit(record_expert_episode, task, first_seed + i, noise)
                    for i in range(episodes_per_task)
                )
                for task in tasks
            }
        for task, futures in pending.items():
            kept: list[Episode] = []
            attempts = 0
            while futures:
                episode = futures.popleft().result()
                attempts += 1
                on_episode(task, episode is not None)
                if episode is not None:
                    kept.append(episode)
                    continue
                if attempts + len(futures) >= episodes_per_task * MAX_ATTEMPTS_PER_EPISODE:
                    raise TrainingError(
                        f"the expert of {task} succeeded in {len(kept)} of {attempts} attempts with "
                        f"noise {noise}; expected at least 1 in {MAX_ATTEMPTS_PER_EPISODE}: lower --noise"
                    )
                next_seed = first_seed + attempts + len(futures)
                futures.append(executor.submit(record_expert_episode, task, next_seed, noise))
            results.append(TaskDemonstrations(task, attempts, kept))
    return results
