"""Faults of a simulated robot, to learn which of them a server's health tells: ``chunkcast-sim --fault NAME[:SIZE]``.

A fault stands between the environment and the policy: it changes what is observed, what is executed, or the scene
itself, from its first tick on until the episode's end. Whatever is drawn follows from the episode's seed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from chunkcast.client.sim import image_faults
from chunkcast.client.sim.metaworld_robot import STATE_KEY, MetaWorldRobot, told_entries
from chunkcast.client.sim.observed import Observed, changed
from chunkcast.simulation.metaworld_tasks import MAX_EPISODE_STEPS
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import camera_entries

ONE_TICK = 18
"""Entries of MetaWorld's observation that describe a tick; the tick before follows, then the goal."""
HAND, OBJECT = slice(0, 3), slice(4, 7)
ACTION_GRIPPER = 3
OPEN = -1.0
"""The gripper action that opens."""
FAULT_SEED = 7_919
"""Keeps a fault's draws apart from the environment's, which follow from the same episode seed."""


class UnknownFault(ValueError):
    """No such fault, or not of this size; the message says what there is."""


@dataclass(frozen=True)
class Fault:
    """A fault as it was asked for.

    Attributes:
        name: one of ``FAULTS``.
        size: in the unit that ``FAULTS`` says.
        from_tick: the first control tick at which it is there.
    """

    name: str
    size: float
    from_tick: int


@dataclass(frozen=True)
class FaultKind:
    """What ``--fault`` offers under a name.

    Attributes:
        size: by default.
        unit: of the size; empty where it has none.
        most: the largest size that makes sense.
        from_tick: by default; 0 is a fault that is there from the beginning.
        meaning: one line.
        needs: what a policy has to be shown for the fault to mean anything to it.
    """

    size: float
    unit: str
    most: float
    from_tick: int
    meaning: str
    needs: Literal["nothing", "objects", "pictures"] = "nothing"


FAULTS: dict[str, FaultKind] = {
    "sensor-bias": FaultKind(
        0.06, "m", 1.0, 0, "the object's position is off by a constant, in a random direction", "objects"
    ),
    "sensor-noise": FaultKind(0.03, "m", 1.0, 0, "white noise on every position, its standard deviation", "objects"),
    "frozen": FaultKind(0.0, "", 0.0, 15, "the observation stands still"),
    "swapped": FaultKind(0.0, "", 0.0, 0, "the x and y entries of hand and object change places", "objects"),
    "wrong-task": FaultKind(0.0, "", 0.0, 0, "the policy is told another of its instructions"),
    "action-scale": FaultKind(0.25, "1", 10.0, 0, "the arm moves by this share of what it is told"),
    "delay": FaultKind(12.0, "ticks", 100.0, 0, "an action is executed so many ticks after its time"),
    "gripper-stuck": FaultKind(0.0, "", 0.0, 0, "the gripper stays open"),
    "occluded": FaultKind(0.1, "1", 1.0, 0, "something grey covers this share of each picture", "pictures"),
    "dark": FaultKind(0.4, "1", 4.0, 0, "each picture has this share of its light", "pictures"),
    "blurred": FaultKind(
        2.0, "px", 64.0, 0, "each picture is out of focus, a Gaussian's standard deviation", "pictures"
    ),
    "camera-moved": FaultKind(0.05, "m", 1.0, 0, "something knocks the cameras, in a random direction", "pictures"),
    "frozen-picture": FaultKind(
        0.0, "", 0.0, 15, "each picture stands still, and the rest of the observation does not", "pictures"
    ),
    "object-moved": FaultKind(0.12, "m", 1.0, 20, "something moves the object, in a random horizontal direction"),
}


def faults_for(spec: pb.PolicySpec) -> tuple[str, ...]:
    """The faults that this policy could notice: one that is told no object's position is not misled about it, and one
    without cameras sees nothing of theirs.
    """
    shown = {"nothing": True, "objects": told_entries(spec) >= ONE_TICK, "pictures": bool(camera_entries(spec))}
    return tuple(name for name, kind in FAULTS.items() if shown[kind.needs])


def parse_fault(text: str) -> Fault:
    """``NAME``, ``NAME:SIZE`` or ``NAME:SIZE@TICK`` as a fault.

    Raises:
        UnknownFault: there is no such one, or the size or tick is no number within its range.
    """
    name_and_size, _, tick = text.partition("@")
    name, _, size = name_and_size.partition(":")
    kind = FAULTS.get(name)
    if kind is None:
        raise UnknownFault(f"--fault is {text!r}, expected NAME[:SIZE][@TICK] with one of {', '.join(FAULTS)}")
    try:
        value = float(size) if size else kind.size
    except ValueError:
        value = math.nan
    if size and not kind.unit:
        raise UnknownFault(f"--fault {text!r}: {name} has no size; expected {name}[@TICK]")
    if not 0.0 <= value <= kind.most:
        raise UnknownFault(f"--fault {text!r}: the size is {size!r}, expected 0 to {kind.most:g} {kind.unit}")
    if kind.unit == "ticks" and value != int(value):
        raise UnknownFault(f"--fault {text!r}: the size is {size!r}, expected whole ticks")
    if name == "wrong-task" and tick:
        raise UnknownFault(f"--fault {text!r}: an episode has one instruction; leave out @{tick}")
    if tick and not (tick.isdecimal() and int(tick) < MAX_EPISODE_STEPS):
        raise UnknownFault(f"--fault {text!r}: the first tick is {tick!r}, expected 0 to {MAX_EPISODE_STEPS - 1}")
    return Fault(name, value, int(tick) if tick else kind.from_tick)


def described(fault: Fault) -> str:
    """The fault in one line, with its size where it has one."""
    kind = FAULTS[fault.name]
    if not kind.unit:
        return kind.meaning
    return f"{kind.meaning}: {fault.size:g} {kind.unit}".removesuffix(" 1")


class FaultyRobot:
    """A MetaWorld robot with a fault; satisfies ``chunkcast.client.Robot``.

    Args:
        robot: whose fault it is.
        fault: what is wrong with it.
        seed: the episode's.
    """

    def __init__(self, robot: MetaWorldRobot, fault: Fault, seed: int) -> None:
        self._robot, self._fault = robot, fault
        self._generator = np.random.default_rng([FAULT_SEED, seed])
        direction = self._generator.standard_normal(3)
        self._bias = fault.size * direction / np.linalg.norm(direction)
        angle = self._generator.uniform(0.0, 2.0 * math.pi)
        self._push = fault.size * np.array([math.cos(angle), math.sin(angle)])
        # Of its own: what the other faults draw stays what it was.
        self._place = np.random.default_rng([FAULT_SEED, seed, 1]).uniform(size=2)
        self._frozen: Observed | None = None
        self._late: deque[npt.NDArray[np.float32]] = deque()

    def instruction(self, own: str, others: Sequence[str]) -> str:
        """What the policy is told, where it should be told ``own``; ``others`` mean other tasks."""
        if self._fault.name != "wrong-task" or not others:
            return own
        return others[int(self._generator.integers(len(others)))]

    @property
    def _present(self) -> bool:
        return self._robot.steps >= self._fault.from_tick

    def observe(self) -> Observed:
        """What the policy is told of the scene."""
        if self._fault.name == "camera-moved" and self._robot.steps == self._fault.from_tick:
            self._robot.move_cameras(self._bias)
        observed = self._robot.observe()
        if not self._present:
            return observed
        if self._fault.name == "frozen":
            # Looked at now: later the robot has moved on.
            self._frozen = self._frozen or dict(observed)
            return self._frozen
        name, size = self._fault.name, self._fault.size
        if name == "sensor-noise":
            # Drawn at every tick, looked at or not: what is drawn follows from the seed and the tick.
            return changed(observed, {STATE_KEY: partial(_plus, size * self._generator.standard_normal((2, 2, 3)))})
        if change := {"sensor-bias": self._biased, "swapped": _swapped}.get(name):
            return changed(observed, {STATE_KEY: change})
        pictures = [key for key in observed if key != STATE_KEY]
        match name:
            case "frozen-picture":
                self._frozen = self._frozen or {key: observed[key] for key in pictures}
                frozen = self._frozen
                return changed(observed, {key: partial(_instead, frozen[key]) for key in pictures})
            case "occluded":
                seen: Any = partial(image_faults.occluded, share=size, at=self._place)
            case "dark":
                seen = partial(image_faults.darkened, share=size)
            case "blurred":
                seen = partial(image_faults.blurred, radius=size)
            case _:
                return observed
        return changed(observed, dict.fromkeys(pictures, seen))

    def act(self, action: npt.NDArray[np.float32]) -> None:
        """Execute what the fault makes of ``action``."""
        if self._present:
            match self._fault.name:
                case "action-scale":
                    action = action.copy()
                    action[:ACTION_GRIPPER] *= np.float32(self._fault.size)
                case "gripper-stuck":
                    action = action.copy()
                    action[ACTION_GRIPPER] = OPEN
                case "object-moved" if self._robot.steps == self._fault.from_tick:
                    self._robot.push_object(self._push)
                case "delay":
                    self._late.append(action)
                    # Until the first action is due the arm rests.
                    action = self._late.popleft() if len(self._late) > self._fault.size else np.zeros_like(action)
        self._robot.act(action)

    def safe_stop(self) -> None:
        """As the robot's own."""
        self._robot.safe_stop()

    def _biased(self, state: npt.NDArray[Any]) -> npt.NDArray[Any]:
        for tick in (0, ONE_TICK):
            state[tick + OBJECT.start : tick + OBJECT.stop] += self._bias.astype(state.dtype)
        return state


def _instead(other: npt.NDArray[Any], _own: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return other


def _plus(noise: npt.NDArray[np.float64], state: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``noise [tick, hand or object, 3]`` added to ``state``."""
    for tick, of_tick in zip((0, ONE_TICK), noise, strict=True):
        for part, displacement in zip((HAND, OBJECT), of_tick, strict=True):
            state[tick + part.start : tick + part.stop] += displacement.astype(state.dtype)
    return state


def _swapped(state: npt.NDArray[Any]) -> npt.NDArray[Any]:
    for first in (0, OBJECT.start, ONE_TICK, ONE_TICK + OBJECT.start):
        state[[first, first + 1]] = state[[first + 1, first]]
    return state
