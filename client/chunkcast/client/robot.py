"""What a robot is to chunkcast, and whether it fits a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from chunkcast.client.errors import RobotMismatch, UnsafeAction
from chunkcast.client.wire import ActionChunk
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import action_limits, camera_entries, one_line, same_proportions
from chunkcast.v1.tensors import DTYPES


class Robot(Protocol):
    """Anything that can be observed, moved and stopped."""

    def observe(self) -> Mapping[str, npt.NDArray[Any]]:
        """What the sensors say now: one array for each of the policy's observation entries, in physical units."""

    def act(self, action: npt.NDArray[np.float32]) -> None:
        """Execute one action, float32 ``[action size]`` in physical units, for one control tick."""

    def safe_stop(self) -> None:
        """Come to a safe standstill. Called when the policy cannot be trusted to answer, and at the end of every run;
        must not raise.
        """


class ActionCheck:
    """The robot's own check of a chunk: what the policy's specification says of its actions, the client holds it to.

    Args:
        spec: as it was when the robot was compared with it.
    """

    def __init__(self, spec: pb.PolicySpec) -> None:
        self._low, self._high = action_limits(spec.action)
        self._shape = (spec.action.horizon, len(spec.action.elements))

    def __call__(self, chunk: ActionChunk) -> None:
        """Accept ``chunk``.

        Raises:
            UnsafeAction: its shape is not the policy's, or an action is not finite and within the bounds.
        """
        actions, version = chunk.actions, one_line(chunk.policy_version, 64)
        if actions.shape != self._shape:
            raise UnsafeAction(
                pb.ERROR_CODE_UNSAFE_ACTION,
                f"policy version {version} sent actions of shape {list(actions.shape)}, expected "
                f"{list(self._shape)}; nothing was executed",
            )
        if not ((actions >= self._low) & (actions <= self._high)).all():
            raise UnsafeAction(
                pb.ERROR_CODE_UNSAFE_ACTION,
                f"policy version {version} sent actions beyond its bounds; nothing was executed",
            )


def check_observation(spec: pb.PolicySpec, observation: Mapping[str, npt.NDArray[Any]]) -> None:
    """Compare a robot's observation with what the policy expects.

    Raises:
        RobotMismatch: a key, dtype or shape differs; the message names the first difference.
    """
    if unknown := [int(entry.dtype) for entry in spec.observations if entry.dtype not in DTYPES]:
        raise RobotMismatch(
            f"policy {one_line(spec.name, 64)} has an observation of the unknown dtype code {unknown[0]}"
        )
    expected = {entry.key: (DTYPES[entry.dtype], tuple(entry.shape)) for entry in spec.observations}
    if observation.keys() != expected.keys():
        raise RobotMismatch(f"the robot observes {sorted(observation)}, policy {spec.name} expects {sorted(expected)}")
    cameras = {entry.key for entry in camera_entries(spec)}
    for key, (dtype, shape) in expected.items():
        array = observation[key]
        if not isinstance(array, np.ndarray):
            raise RobotMismatch(
                f"the robot's {key} is a {type(array).__name__}, policy {spec.name} expects a numpy array of {dtype} "
                f"{list(shape)}"
            )
        if key in cameras and array.dtype == dtype and array.ndim == 3 and array.shape[2:] == shape[2:]:
            height, width = array.shape[:2]
            if not same_proportions((height, width), (shape[0], shape[1])):
                raise RobotMismatch(
                    f"the robot's {key} has {height}x{width} pixels (height x width), policy {spec.name} expects the "
                    f"proportions of {shape[0]}x{shape[1]}; crop it as the policy's camera sees"
                )
            continue  # the server brings it to size
        if array.dtype != dtype or array.shape != shape:
            raise RobotMismatch(
                f"the robot's {key} is {array.dtype} {list(array.shape)}, policy {spec.name} expects {dtype} "
                f"{list(shape)}"
            )
