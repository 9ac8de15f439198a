"""One robot's episode as the server sees it: checked observations, their history, and the graph's inputs."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.server.engine import INSTRUCTION_INPUT, NOISE_INPUT
from chunkcast.server.errors import ObservationRejected
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import DTYPES, TensorError, decode_tensor

MAX_IDENTIFIER_LENGTH = 128

Tensors = dict[str, npt.NDArray[Any]]


class Session:
    """The state of one stream: its current episode's history and instruction.

    A rejected observation leaves everything as it was. The tick before an observation may be missing (the episode
    has just begun, or the robot did not send it); the next newer observation then stands in its place, as in training.

    Args:
        spec: the policy's specification.
    """

    def __init__(self, spec: pb.PolicySpec) -> None:
        self._spec = spec
        self._entries = {entry.key: (DTYPES[entry.dtype], tuple(entry.shape)) for entry in spec.observations}
        self._embeddings = {
            instruction.text: np.array(instruction.embedding, np.float32)[None] for instruction in spec.instructions
        }
        self._noise_shape = (1, spec.action.horizon, len(spec.action.elements))
        self._fresh_noise = np.random.default_rng()
        self._episode_id = ""
        self._last_step = -1
        self._instruction = ""
        self._history: deque[tuple[int, Tensors]] = deque(maxlen=spec.observation_steps)

    def accept(self, observation: pb.Observation) -> None:
        """Check ``observation`` and take it into the history.

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
        instruction = observation.instruction or ("" if new_episode else self._instruction)
        if self._embeddings and instruction not in self._embeddings:
            raise ObservationRejected(
                pb.ERROR_CODE_UNKNOWN_INSTRUCTION,
                f"instruction {instruction[:MAX_IDENTIFIER_LENGTH]!r} is not known to {self._spec.name}; expected one "
                f"of {_list_some(list(self._embeddings))}",
            )
        tensors = self._decode(observation)
        if new_episode:
            self._history.clear()
        self._episode_id, self._last_step = observation.episode_id, observation.step
        self._instruction = instruction
        self._history.append((observation.step, tensors))

    def graph_inputs(self, observation: pb.Observation) -> Tensors:
        """The graph's inputs, batch size 1, for ``observation``, the last one accepted."""
        newest = self._last_step
        by_step = dict(self._history)
        ticks = []
        current = by_step[newest]
        for step in range(newest, newest - self._spec.observation_steps, -1):
            current = by_step.get(step, current)
            ticks.append(current)
        ticks.reverse()  # oldest first
        inputs: Tensors = {key: np.stack([tick[key] for tick in ticks])[None] for key in self._entries}
        if self._embeddings:
            inputs[INSTRUCTION_INPUT] = self._embeddings[self._instruction]
        generator = (
            np.random.default_rng([observation.noise_seed, observation.step])
            if observation.HasField("noise_seed")
            else self._fresh_noise
        )
        inputs[NOISE_INPUT] = generator.standard_normal(self._noise_shape, np.float32)
        return inputs

    def _decode(self, observation: pb.Observation) -> Tensors:
        """The observation's tensors, each of the key, dtype and shape that the specification says, and finite."""
        if observation.tensors.keys() != self._entries.keys():
            raise ObservationRejected(
                pb.ERROR_CODE_WRONG_KEY,
                f"observation has {_list_some(sorted(observation.tensors))}, expected {sorted(self._entries)}",
            )
        decoded: Tensors = {}
        for key, (dtype, shape) in self._entries.items():
            tensor = observation.tensors[key]
            if DTYPES.get(tensor.dtype) != dtype:
                received = DTYPES.get(tensor.dtype, f"code {int(tensor.dtype)}")
                raise ObservationRejected(
                    pb.ERROR_CODE_WRONG_DTYPE, f"{key} is {received}, expected {dtype}; convert it before sending"
                )
            if tuple(tensor.shape) != shape:
                raise ObservationRejected(
                    pb.ERROR_CODE_WRONG_SHAPE,
                    f"{key} has shape {_list_some(list(tensor.shape))}, expected {list(shape)}",
                )
            try:
                array = decode_tensor(tensor)
            except TensorError as error:
                raise ObservationRejected(pb.ERROR_CODE_WRONG_SHAPE, f"{key}: {error}") from None
            if dtype.kind == "f" and not np.isfinite(array).all():
                index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
                raise ObservationRejected(
                    pb.ERROR_CODE_NOT_FINITE,
                    f"{key} at index {index} is {array[tuple(index)]}; send finite values: check the sensor",
                )
            decoded[key] = array
        return decoded


def _list_some(values: list[Any], limit: int = 8) -> str:
    """At most ``limit`` values, so that a hostile request cannot make a long message."""
    shown = ", ".join(repr(value)[:MAX_IDENTIFIER_LENGTH] for value in values[:limit])
    return f"[{shown}{', ...' if len(values) > limit else ''}]"
