"""A MetaWorld environment as a robot: one integer names an episode's start and goal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.client.errors import RobotMismatch
from chunkcast.client.sim.video import HINT, RenderingUnavailable

STATE_KEY = "observation.state"
MAX_EPISODE_STEPS = 500
"""MetaWorld's own limit; a step beyond it raises."""
CAMERA = "corner2"

Observed = Mapping[str, npt.NDArray[Any]]
"""One array for each observation entry."""

ROBOT_ROOT = "base"
"""The body that the arm stands on: whatever else can move is an object."""


class MetaWorldRobot:
    """Satisfies ``chunkcast.client.Robot``.

    Args:
        task: a MetaWorld v3 name, such as ``pick-place-v3``.

    Raises:
        RobotMismatch: MetaWorld has no such task.
    """

    def __init__(self, task: str) -> None:
        from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

        key = f"{task}-goal-observable"
        if key not in ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE:
            raise RobotMismatch(f"unknown MetaWorld task {task!r}; expected a v3 name such as pick-place-v3")
        self.task = task
        self._environment: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[key](seed=0)
        # Draw each episode from the environment's own generator, which begin_episode seeds.
        self._environment._freeze_rand_vec = False
        self._environment.seeded_rand_vec = True
        self._renderer: Any = None

    def begin_episode(self, seed: int) -> None:
        """Put hand, objects and goal where ``seed`` says."""
        self._environment.seed(seed)
        self._observation, _ = self._environment.reset()
        self.steps = 0
        self.success = False

    @property
    def done(self) -> bool:
        """Solved, or out of time."""
        return self.success or self.steps >= MAX_EPISODE_STEPS

    def observe(self) -> Observed:
        """MetaWorld's 39 numbers: hand, gripper and objects at this tick and the one before, and the goal."""
        return {STATE_KEY: self._observation.astype(np.float32)}

    def act(self, action: npt.NDArray[np.float32]) -> None:
        """One control tick."""
        self._observation, _, _, _, info = self._environment.step(action)
        self.steps += 1
        self.success = self.success or bool(info["success"])

    def safe_stop(self) -> None:
        """Nothing moves between ticks of a simulation."""

    def push_object(self, displacement: npt.NDArray[np.float64]) -> None:
        """Put whatever the arm can move (a puck, or a drawer with its cabinet) elsewhere, as a bystander would.

        Args:
            displacement: ``[2]``, metres, x and y.
        """
        import mujoco

        model, data = self._environment.model, self._environment.data
        robot = model.body(ROBOT_ROOT).id
        for joint in range(model.njnt):
            root = model.body_rootid[model.jnt_bodyid[joint]]
            if root == robot:
                continue
            if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
                first = model.jnt_qposadr[joint]
                data.qpos[first : first + 2] += displacement
            else:
                # An episode's reset writes the body's place anew.
                model.body_pos[root][:2] += displacement
        mujoco.mj_forward(model, data)

    def render(self, size: int) -> npt.NDArray[np.uint8]:
        """A picture, uint8 ``[size, size, 3]``, from the camera of the published MetaWorld protocols.

        Raises:
            RenderingUnavailable: the GL library that was chosen does not work.
        """
        import mujoco

        if self._renderer is None:
            try:
                self._renderer = mujoco.Renderer(self._environment.model, size, size)
            except Exception as error:  # whatever the GL library raises
                raise RenderingUnavailable(f"{HINT} ({type(error).__name__}: {str(error).splitlines()[0]})") from None
        self._renderer.update_scene(self._environment.data, camera=CAMERA)
        # The camera hangs upside down in MetaWorld's scenes.
        frame: npt.NDArray[np.uint8] = self._renderer.render()[::-1, ::-1]
        return frame
