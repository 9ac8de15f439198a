"""Demonstrations as training windows: what was observed up to a tick, and the action chunk from that tick on.

Every tick of every episode is a window. Before an episode's start its first observation is repeated, as the server
does for a robot that has just begun; after its end the last action is repeated and masked out of the loss.

Where noise was executed, the expert's later actions answer a disturbance that nobody could foresee from the window's
observation. They are masked out too, unless the disturbance was committed: then the policy is told of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.distributed import ALONE, Processes
from chunkcast.training.draws import Draws
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.language.instructions import Instructions
from chunkcast.training.rehearsal import Rehearsal
from chunkcast.training.vision.frame_tensors import FrameTensors


@dataclass(frozen=True)
class Batch:
    """``B`` windows in physical units.

    Attributes:
        state: float32 ``[B, T, S]``, oldest first; the last is the current one.
        instruction: float32 ``[B, E]``, the embedding of the task's instruction.
        actions: float32 ``[B, H, A]``, the expert's from the current tick on.
        executed: float32 ``[B, H, A]``, what was executed from the current tick on.
        mask: float32 ``[B, H]``, 1 within the episode and 0 beyond its end.
        disturbed: float32 ``[B, H]``, 1 where what was executed is not the expert's action.
        images: of each view, uint8 ``[B, T, H, H, 3]``; none for a policy of states.
        privileged: float32 ``[B, T, P]``, what the image encoders learn to tell beside (see ``vision.privileged``).
    """

    state: torch.Tensor
    instruction: torch.Tensor
    actions: torch.Tensor
    executed: torch.Tensor
    mask: torch.Tensor
    disturbed: torch.Tensor
    images: tuple[torch.Tensor, ...] = ()
    privileged: torch.Tensor | None = None

    def foreseeable(self, prefix_length: torch.Tensor) -> torch.Tensor:
        """Float32 ``[B, H]``: 1 in the rows that a policy can know which is told of the first ``prefix_length``
        (int64 ``[B]``) executed actions: after these, within the episode, and not after another disturbance.
        """
        rows = torch.arange(self.mask.shape[1], device=self.mask.device)
        after_prefix = (rows[None] >= prefix_length[:, None]).to(self.mask.dtype)
        disturbances = (self.disturbed * after_prefix).cumsum(1)
        before_row = torch.nn.functional.pad(disturbances, (1, 0))[:, :-1]
        return self.mask * after_prefix * (before_row == 0)

    def repeated(self, times: int) -> Batch:
        """The windows over and over, without what only encoding needs: their images."""
        again = {name: getattr(self, name).repeat(times, 1, 1) for name in ("state", "actions", "executed")}
        again |= {name: getattr(self, name).repeat(times, 1) for name in ("instruction", "mask", "disturbed")}
        return Batch(**again)

    def stilled(self, windows: torch.Tensor, previous: tuple[tuple[int, int], ...]) -> Batch:
        """The batch with ``windows`` (bool ``[B]``) seen as if nothing had moved until now.

        Args:
            previous: pairs of entries of the state, each a tick before and now.
        """
        state = self.state[:, -1:].repeat(1, self.state.shape[1], 1)
        before, now = [pair[0] for pair in previous], [pair[1] for pair in previous]
        state[..., before] = state[..., now]
        return replace(self, state=torch.where(windows[:, None, None], state, self.state))


@dataclass(frozen=True)
class Seen:
    """What a policy with cameras is shown of demonstrations.

    Attributes:
        state_entries: of the recorded state, the first ones; the others it must find in its images.
        frames: its images.
        privileged: float32 ``[N, P]``, of every row (see ``vision.privileged``), or ``None``.
    """

    state_entries: int
    frames: FrameTensors
    privileged: npt.NDArray[np.float32] | None = None


class Windows:
    """All windows of a set of episodes, held as index tables over the demonstrations' rows.

    A policy with cameras has a window at every tick that has a frame.

    Args:
        demonstrations: the rows.
        episodes: the indices of the episodes to take windows from.
        observation_steps: observations per window, ``T``.
        horizon: actions per window, ``H``.
        instructions: of the demonstrations' tasks.
        limit: the most windows to hold, spread evenly; ``None`` holds all.
        device: where rows, tables and batches live.
        seen: what a policy with cameras is shown; ``None`` for one of states, which is shown the recorded ones.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        episodes: npt.NDArray[np.int64],
        *,
        observation_steps: int,
        horizon: int,
        instructions: Instructions,
        device: torch.device,
        limit: int | None = None,
        seen: Seen | None = None,
    ) -> None:
        rows = np.flatnonzero(np.isin(demonstrations.episode_index, episodes))
        if seen:
            rows = rows[seen.frames.frame_of_row[rows] >= 0]
        if limit is not None and len(rows) > limit:
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
        tasks = demonstrations.tasks
        task_of_episode = np.array([tasks.index(task) for task in demonstrations.episode_tasks])
        episodes_of_rows = demonstrations.episode_index[rows]
        bounds = np.searchsorted(demonstrations.episode_index, np.arange(len(task_of_episode) + 1))

        self.task = torch.from_numpy(task_of_episode[episodes_of_rows])
        """int64 ``[N]``: each window's task, as an index into the demonstrations' tasks."""
        states = demonstrations.states.narrowed(seen.state_entries) if seen else demonstrations.states
        self._states, self._actions, self._executed = (
            column.near(device) for column in (states, demonstrations.actions, demonstrations.executed)
        )
        self._device, home = device, self._states.device
        # Of a window no more is held than its row and its episode: tables of all its rows would outgrow the data.
        self._rows = torch.from_numpy(rows).to(home)
        self._episode = torch.from_numpy(episodes_of_rows)
        self._episode_of_window = self._episode.to(home)
        self._bounds = torch.from_numpy(bounds).to(home)
        self._past = torch.arange(1 - observation_steps, 1, device=home)
        self._future = torch.arange(horizon, device=home)
        self._frames = seen.frames if seen else None
        self._frame_of_row = torch.from_numpy(seen.frames.frame_of_row).to(home) if seen else None
        told = seen.privileged if seen else None
        self._privileged = torch.from_numpy(told).to(home) if told is not None else None
        self._task = self.task.to(device)
        self._embeddings = instructions.embeddings.to(device)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: torch.Tensor, phrase: torch.Tensor | int = 0) -> Batch:
        """The windows at ``indices`` (int64 ``[B]``), each told by its task's ``phrase`` (int64 ``[B]``; 0 is the
        instruction itself).
        """
        near = indices.to(self._rows.device)
        rows, episode = self._rows[near, None], self._episode_of_window[near, None].long()
        first, last = self._bounds[episode], self._bounds[episode + 1] - 1
        past = torch.maximum(rows + self._past, first)
        future = rows + self._future
        within = (future <= last).to(torch.float32)
        future = torch.minimum(future, last)
        images: tuple[torch.Tensor, ...] = ()
        if self._frames is not None and self._frame_of_row is not None:
            images = self._frames.take(self._frame_of_row[past])
        actions, executed = self._actions.take(future), self._executed.take(future)
        disturbed = (actions != executed).any(-1).to(torch.float32)

        def here(value: torch.Tensor) -> torch.Tensor:
            return value.to(self._device, non_blocking=True)

        return Batch(
            state=here(self._states.take(past)),
            instruction=self._embeddings[self._task[indices.to(self._device)], phrase],
            actions=here(actions),
            executed=here(executed),
            mask=here(within),
            disturbed=here(disturbed),
            images=images,
            privileged=here(self._privileged[past]) if self._privileged is not None else None,
        )

    def epoch_size(self, per_episode: int = 0) -> int:
        """Windows in an epoch: all of them, or at most ``per_episode`` of each episode."""
        if not per_episode:
            return len(self)
        return int(torch.bincount(self._episode.long()).clamp(max=per_episode).sum())

    def rehearsed_from(self, episode: int) -> torch.Tensor:
        """Bool ``[N]``: the windows of ``episode`` and those after it."""
        return self._episode >= episode

    def shuffled(
        self,
        batch_size: int,
        generator: torch.Generator,
        per_episode: int = 0,
        processes: Processes = ALONE,
        rehearsal: Rehearsal | None = None,
    ) -> Iterator[Batch]:
        """One epoch of full batches in an order drawn from ``generator``, each window told by a phrase drawn from it;
        the rest of a division is left out.

        Args:
            batch_size: windows of a batch, of all processes together.
            per_episode: as many windows of each episode at most, drawn anew; 0 for all.
            processes: of a batch's windows this one takes its own, in turns.
            rehearsal: what a share of each batch is taken from; new windows are repeated until the epoch is full.
        """
        draws = Draws(generator, processes.rank, processes.count)
        order = torch.randperm(len(self), generator=generator)
        if per_episode:
            # Stable: within its episode each window keeps its place in the random order.
            episode, by_episode = self._episode[order].sort(stable=True)
            begins = torch.searchsorted(episode, episode)
            chosen = torch.arange(len(order)) - begins < per_episode
            order = order[by_episode[chosen].sort().values]
        # Every process has as many of each batch.
        batch_size = min(batch_size, len(order) // processes.count * processes.count)
        if rehearsal:
            order = rehearsal.order(len(order) // batch_size, batch_size, generator)
        phrases = self._embeddings.shape[1]
        for first in range(0, len(order) - batch_size + 1, batch_size):
            chosen = draws.own(order[first : first + batch_size])
            phrase = draws.integers(0, phrases, len(chosen)).to(self._device) if phrases > 1 else 0
            yield self.take(chosen, phrase)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every window once, in order."""
        for part in torch.split(torch.arange(len(self)), batch_size):
            yield self.take(part)


def split_by_episode(
    demonstrations: Demonstrations, validation_fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and validation episodes: whole episodes, the same share (at least one) of each task. Of a task that was
    done once that one is trained on.

    Neighbouring ticks are nearly equal: a split by window would validate on what was trained.

    Raises:
        DemonstrationsError: no task has two episodes.
    """
    generator = np.random.default_rng(seed)
    tasks = np.array(demonstrations.episode_tasks)
    validation: list[np.int64] = []
    for task in demonstrations.tasks:
        episodes = np.flatnonzero(tasks == task)
        if len(episodes) == 1:
            continue
        held_out = max(1, round(validation_fraction * len(episodes)))
        validation.extend(generator.choice(episodes, held_out, replace=False))
    if not validation:
        raise DemonstrationsError(
            f"there is one episode of each task ({', '.join(demonstrations.tasks)[:120]}); a split by episode needs 2 "
            "of some: collect more"
        )
    everything = np.arange(len(tasks))
    return np.setdiff1d(everything, validation), np.sort(np.array(validation))
