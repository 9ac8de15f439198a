"""One robot's episode as the server sees it: checked observations, their history, and the graph's inputs."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chunkcast.server.bundle import INSTRUCTION_INPUT, NOISE_INPUT, PREFIX_ACTIONS_INPUT, PREFIX_LENGTH_INPUT
from chunkcast.server.errors import ObservationRejected
from chunkcast.server.identifiers import MAX_IDENTIFIER_LENGTH
from chunkcast.server.images import Pictures
from chunkcast.server.instructions import KnownInstructions, Told
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import action_limits, camera_entries
from chunkcast.v1.tensors import DTYPES

Tensors = dict[str, npt.NDArray[Any]]


class Session:
    """The state of one stream: its current episode's history and instruction.

    A rejected observation leaves everything as it was. The tick before an observation may be missing (the episode
    has just begun, or the robot did not send it); the next newer observation then stands in its place, as in training.

    Args:
        spec: the policy's specification.
        instructions: what it can be told.

    Attributes:
        sees: the policy has cameras.
        executed: what the robot says that it executed before the last observation, float32 ``[n, A]``, or ``None``.
    """

    def __init__(self, spec: pb.PolicySpec, instructions: KnownInstructions) -> None:
        self._told: Told | None = None
        self.adopt(spec, instructions)
        self._fresh_noise = np.random.default_rng()
        self._episode_id = ""
        self._last_step = -1
        self._instruction = ""
        self.executed: npt.NDArray[np.float32] | None = None
        self._history: deque[tuple[int, Tensors]] = deque(maxlen=spec.observation_steps)

    @property
    def instruction(self) -> str:
        """That of the specification which the last observation accepted was told, or is nearest to what it was told."""
        return self._told.instruction if self._told else ""

    def adopt(self, spec: pb.PolicySpec, instructions: KnownInstructions) -> None:
        """Go on under another version of the policy, of the same contract; the episode and its history stand."""
        self._spec, self._instructions = spec, instructions
        self._entries = {entry.key: _Entry.of(entry) for entry in spec.observations}
        self.sees = bool(camera_entries(spec))
        self._told_text: str | None = None  # the embedding may be another by now
        self._chunk_shape = (spec.action.horizon, len(spec.action.elements))
        self._committed = _CommittedActions(spec.action)

    def adopt_instructions(self, instructions: KnownInstructions) -> None:
        """Understand further texts by ``instructions``, of the same version."""
        if instructions is not self._instructions:
            self._instructions, self._told_text = instructions, None

    async def learn(self, observation: pb.Observation) -> None:
        """Have the encoder run on another thread, if accepting ``observation`` would need it."""
        await self._instructions.learn(self._instruction_of(observation))

    def _instruction_of(self, observation: pb.Observation) -> str:
        """Its own, or the one that stands in its episode."""
        new_episode = self._last_step < 0 or observation.episode_id != self._episode_id
        return observation.instruction or ("" if new_episode else self._instruction)

    def can_miss(self, observation: pb.Observation) -> bool:
        """Whether a newer observation would be answered the same without this one: nothing of it is remembered."""
        same_episode = self._last_step >= 0 and observation.episode_id == self._episode_id
        return same_episode and self._spec.observation_steps == 1 and observation.instruction in ("", self._instruction)

    def accept(self, observation: pb.Observation, pictures: Pictures | None = None) -> None:
        """Check ``observation`` and take it into the history.

        Args:
            pictures: from ``ImageDecoder.decode``; not needed for a policy without cameras.

        Raises:
            ObservationRejected: it cannot be used; the session is as it was.
        """
        if len(observation.episode_id) > MAX_IDENTIFIER_LENGTH:
            raise ObservationRejected(
                pb.ERROR_CODE_BAD_REQUEST,
                f"episode_id has {len(observation.episode_id)} characters, expected at most {MAX_IDENTIFIER_LENGTH}",
            )
        new_episode = self._last_step < 0 or observation.episode_id != self._episode_id
        if not new_episode and observation.step <= self._last_step:
            raise ObservationRejected(
                pb.ERROR_CODE_OUT_OF_ORDER,
                f"step {observation.step} is not above {self._last_step}, the last of episode "
                f"{self._episode_id!r}; send steps in order, or begin a new episode with a new episode_id",
            )
        instruction, told = self._instruction_of(observation), self._told
        if instruction != self._told_text:
            told = self._instructions.understand(instruction) if self._instructions else None
        if observation.HasField("deadline") and not 0.0 < observation.deadline < math.inf:
            raise ObservationRejected(
                pb.ERROR_CODE_BAD_REQUEST, f"deadline is {observation.deadline:g} s, expected above 0 and finite"
            )
        tensors = self._decode(observation, pictures or {})
        self._committed.check(observation)
        executed = self._executed(observation)
        if new_episode:
            self._history.clear()
        self._episode_id, self._last_step = observation.episode_id, observation.step
        self._instruction = self._told_text = instruction
        self._told = told
        self._history.append((observation.step, tensors))
        self.executed = executed

    def graph_inputs(self, observation: pb.Observation) -> Tensors:
        """The graph's inputs, without the batch axis, for ``observation``, the last one accepted."""
        ticks = self._ticks()
        inputs: Tensors = (
            # A view, where np.stack would cost as much as all the checks together.
            {key: array[None] for key, array in ticks[0].items()}
            if len(ticks) == 1
            else {key: np.stack([tick[key] for tick in ticks]) for key in self._entries}
        )
        if self._told:
            inputs[INSTRUCTION_INPUT] = self._told.embedding
        generator = (
            np.random.default_rng([observation.noise_seed, observation.step])
            if observation.HasField("noise_seed")
            else self._fresh_noise
        )
        inputs[NOISE_INPUT] = generator.standard_normal(self._chunk_shape, np.float32)
        if self._spec.action.max_committed_steps:
            inputs[PREFIX_ACTIONS_INPUT], inputs[PREFIX_LENGTH_INPUT] = self._committed.prefix(observation)
        return inputs

    def _ticks(self) -> list[Tensors]:
        """The observations that the policy sees, oldest first; a missing tick is the next newer one."""
        by_step = dict(self._history)
        newest = self._last_step
        ticks = [by_step[newest]]
        for step in range(newest - 1, newest - self._spec.observation_steps, -1):
            ticks.append(by_step.get(step, ticks[-1]))
        ticks.reverse()
        return ticks

    def _executed(self, observation: pb.Observation) -> npt.NDArray[np.float32] | None:
        if not observation.HasField("executed_actions"):
            return None
        horizon, size = self._chunk_shape
        actions = _decode_actions("executed_actions", observation.executed_actions, horizon, size)
        if not np.isfinite(actions).all():
            raise ObservationRejected(
                pb.ERROR_CODE_NOT_FINITE, "executed_actions are not finite; send what was executed"
            )
        return actions

    def _decode(self, observation: pb.Observation, pictures: Pictures) -> Tensors:
        """The observation's arrays, each of the key, dtype and shape that the specification says, and finite."""
        tensors, images = observation.tensors, observation.images
        if len(tensors) + len(images) != len(self._entries) or {*tensors, *images} != self._entries.keys():
            raise ObservationRejected(
                pb.ERROR_CODE_WRONG_KEY,
                f"observation has {_list_some(sorted([*tensors, *images]))}, expected {sorted(self._entries)}",
            )
        if misplaced := [key for key in images if key not in pictures]:
            raise ObservationRejected(pb.ERROR_CODE_WRONG_KEY, f"{misplaced[0]} is no camera's; send it as a tensor")
        return {
            key: pictures[key] if key in pictures else entry.decode(key, tensors[key])
            for key, entry in self._entries.items()
        }


class _Entry(NamedTuple):
    """One observation entry, laid out for quick comparison with what arrives."""

    code: pb.DataType.ValueType
    dtype: np.dtype[Any]
    shape: list[int]
    size_bytes: int

    @classmethod
    def of(cls, entry: pb.ObservationEntry) -> _Entry:
        dtype = DTYPES[entry.dtype]
        return cls(entry.dtype, dtype, list(entry.shape), math.prod(entry.shape) * dtype.itemsize)

    def decode(self, key: str, tensor: pb.Tensor) -> npt.NDArray[Any]:
        """The tensor's array, of this entry's dtype and shape, and finite."""
        if tensor.dtype != self.code:
            received = DTYPES.get(tensor.dtype, f"code {int(tensor.dtype)}")
            raise ObservationRejected(
                pb.ERROR_CODE_WRONG_DTYPE, f"{key} is {received}, expected {self.dtype}; convert it before sending"
            )
        if tensor.shape != self.shape:
            raise ObservationRejected(
                pb.ERROR_CODE_WRONG_SHAPE,
                f"{key} has shape {_list_some(list(tensor.shape))}, expected {self.shape}",
            )
        data = tensor.data
        if len(data) != self.size_bytes:
            raise ObservationRejected(
                pb.ERROR_CODE_WRONG_SHAPE,
                f"{key} has {len(data)} bytes of data, expected {self.size_bytes} for {self.dtype} {self.shape}",
            )
        array = np.frombuffer(data, self.dtype).reshape(self.shape)
        if self.dtype.kind == "f" and not np.isfinite(array).all():
            index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            raise ObservationRejected(
                pb.ERROR_CODE_NOT_FINITE,
                f"{key} at index {index} is {array[tuple(index)]}; send finite values: check the sensor",
            )
        return array


class _CommittedActions:
    """The actions that a robot will play while inference runs, checked and padded to a chunk."""

    def __init__(self, action: pb.ActionSpec) -> None:
        self._longest, self._shape = action.max_committed_steps, (action.horizon, len(action.elements))
        self._low, self._high = action_limits(action)
        self._none = (np.zeros(self._shape, np.float32), np.array(0, np.int64))

    def check(self, observation: pb.Observation) -> None:
        """Accept the observation's committed actions.

        Raises:
            ObservationRejected: they are not float32 ``[n, action size]``, too many, or not actions of this robot.
        """
        if not observation.HasField("committed_actions"):
            return
        actions = _decode_actions("committed_actions", observation.committed_actions, self._longest, self._shape[1])
        if not ((actions >= self._low) & (actions <= self._high)).all():
            raise ObservationRejected(
                pb.ERROR_CODE_NOT_FINITE, "committed_actions are not finite and within the policy's action bounds"
            )

    def prefix(self, observation: pb.Observation) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The graph's prefix, float32 ``[H, A]``, and its length, int64 ``[]``, of a checked observation."""
        if not observation.HasField("committed_actions"):
            return self._none
        tensor = observation.committed_actions
        actions = np.frombuffer(tensor.data, np.dtype("<f4")).reshape(tuple(tensor.shape))
        prefix = np.zeros(self._shape, np.float32)
        prefix[: len(actions)] = actions
        return prefix, np.array(len(actions), np.int64)


def _decode_actions(name: str, tensor: pb.Tensor, longest: int, size: int) -> npt.NDArray[np.float32]:
    """The actions called ``name``, float32 ``[n, size]`` with ``n`` up to ``longest``.

    Raises:
        ObservationRejected: they are not.
    """
    shape = list(tensor.shape)
    if len(shape) != 2 or shape[1] != size or not 0 <= shape[0] <= longest:
        raise ObservationRejected(
            pb.ERROR_CODE_WRONG_SHAPE, f"{name} has shape {_list_some(shape)}, expected [0 to {longest}, {size}]"
        )
    if tensor.dtype != pb.DATA_TYPE_FLOAT32:
        raise ObservationRejected(pb.ERROR_CODE_WRONG_DTYPE, f"{name} is not float32; convert it")
    if len(tensor.data) != 4 * shape[0] * size:
        raise ObservationRejected(
            pb.ERROR_CODE_WRONG_SHAPE,
            f"{name} has {len(tensor.data)} bytes of data, expected {4 * shape[0] * size} for {shape}",
        )
    return np.frombuffer(tensor.data, np.dtype("<f4")).reshape(shape)


def _list_some(values: list[Any], limit: int = 8) -> str:
    """At most ``limit`` values, so that a hostile request cannot make a long message."""
    shown = ", ".join(repr(value)[:MAX_IDENTIFIER_LENGTH] for value in values[:limit])
    return f"[{shown}{', ...' if len(values) > limit else ''}]"
