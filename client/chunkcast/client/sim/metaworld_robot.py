"""A MetaWorld environment as a robot: one integer names an episode's start and goal."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.client.errors import RobotMismatch
from chunkcast.client.sim.observed import LazyObservation, Observed
from chunkcast.simulation.cameras import PUBLISHED_POSITION, Camera
from chunkcast.simulation.errors import UnknownTask
from chunkcast.simulation.metaworld_tasks import MAX_EPISODE_STEPS, make_environment
from chunkcast.simulation.rendering import SceneRenderer
from chunkcast.v1 import policy_pb2 as pb

STATE_KEY = "observation.state"

ROBOT_ROOT = "base"
"""The body that the arm stands on: whatever else can move is an object."""


def told_entries(spec: pb.PolicySpec) -> int:
    """How many entries of MetaWorld's observation, the first ones, a policy is told; 0 for none."""
    return next((entry.shape[0] for entry in spec.observations if entry.key == STATE_KEY), 0)


class MetaWorldRobot:
    """Satisfies ``chunkcast.client.Robot``.

    Args:
        task: a MetaWorld v3 name, such as ``pick-place-v3``.
        cameras: what it sees by, their views called as the policy's observation entries.
        state_entries: of MetaWorld's observation, the first ones, that it tells; all by default.

    Raises:
        RobotMismatch: MetaWorld has no such task.
        RenderingUnavailable: it has cameras, and nothing can be rendered here.
    """

    def __init__(self, task: str, cameras: tuple[Camera, ...] = (), state_entries: int | None = None) -> None:
        try:
            self._environment: Any = make_environment(task)
        except UnknownTask as error:
            raise RobotMismatch(str(error)) from None
        self.task = task
        self._cameras, self._state_entries = cameras, state_entries
        self._eyes = SceneRenderer(self._environment.model, cameras) if cameras else None
        self.episode = 0
        self._films: dict[int, tuple[Camera, SceneRenderer]] = {}

    def begin_episode(self, seed: int) -> None:
        """Put hand, objects and goal where ``seed`` says."""
        self._environment.seed(seed)
        self._observation, _ = self._environment.reset()
        self.episode += 1
        self.steps = 0
        self.success = False
        self.move_cameras(np.zeros(3))

    @property
    def done(self) -> bool:
        """Solved, or out of time."""
        return self.success or self.steps >= MAX_EPISODE_STEPS

    def observe(self) -> Observed:
        """MetaWorld's 39 numbers (hand, gripper and objects at this tick and the one before, and the goal), or the
        first of them; and each camera's picture, rendered when it is looked at.
        """
        state = self._observation[: self._state_entries].astype(np.float32)
        if self._eyes is None:
            return {STATE_KEY: state}
        now = (self.episode, self.steps)
        makers = {camera.view: partial(self._eyes.picture, camera, self._environment.data) for camera in self._cameras}
        return LazyObservation({STATE_KEY: state}, makers, lambda: (self.episode, self.steps) == now)

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

    def move_cameras(self, displacement: npt.NDArray[np.float64]) -> None:
        """Put the cameras that the policy sees by elsewhere, until the next episode, as a knock would.

        Args:
            displacement: ``[3]``, metres.
        """
        if self._eyes is not None:
            self._eyes.move(displacement)

    def render(self, size: int) -> npt.NDArray[np.uint8]:
        """A picture for people, uint8 ``[size, size, 3]``, from the camera of the published MetaWorld protocols.

        Raises:
            RenderingUnavailable: the GL library that was chosen does not work.
        """
        if size not in self._films:
            camera = Camera("film", "corner2", size, "full", PUBLISHED_POSITION, turned=True)
            self._films[size] = camera, SceneRenderer(self._environment.model, (camera,))
        camera, renderer = self._films[size]
        return renderer.picture(camera, self._environment.data)
