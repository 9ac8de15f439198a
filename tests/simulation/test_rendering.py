"""Pictures of a simulated scene: each camera's own, made when they are looked at, whatever else is rendered here."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from chunkcast.client.sim.metaworld_robot import STATE_KEY, MetaWorldRobot
from chunkcast.simulation.cameras import Camera
from tests.conftest import require_gl

TASK = "pick-place-v3"
SEED = 500_000
FORWARD = np.array([0.5, 0.5, 0.0, 1.0], np.float32)


def test_a_picture_is_made_when_it_is_looked_at_and_not_after_the_robot_moved_on() -> None:
    require_gl()
    seeing = MetaWorldRobot(TASK, (Camera("eye", "corner2", 48, turned=True),), 4)
    seeing.begin_episode(SEED)
    first = seeing.observe()
    looked_at = first["eye"]
    unseen = seeing.observe()
    seeing.act(FORWARD)
    assert first["eye"] is looked_at
    assert set(unseen) == {STATE_KEY, "eye"}
    with pytest.raises(RuntimeError, match="eye was not looked at before the robot moved on"):
        unseen["eye"]


def test_a_knock_moves_the_cameras_that_a_hand_carries_too() -> None:
    require_gl()
    cameras = (Camera("near", "corner2", 48, turned=True), Camera("carried", "gripperPOV", 48))
    seeing = MetaWorldRobot(TASK, cameras, 4)
    seeing.begin_episode(SEED)
    before = seeing.observe()
    pictures = {camera.view: before[camera.view] for camera in cameras}
    seeing.move_cameras(np.array([0.05, 0.0, 0.0]))
    knocked = seeing.observe()
    assert all((knocked[view] != picture).mean() > 0.05 for view, picture in pictures.items())
    seeing.begin_episode(SEED)
    again = seeing.observe()
    assert all((again[view] == picture).all() for view, picture in pictures.items())


def test_a_large_picture_can_be_made() -> None:
    require_gl()
    large = MetaWorldRobot(TASK, (Camera("eye", "corner2", 700),), 4)
    large.begin_episode(SEED)
    assert large.observe()["eye"].std() > 10


def test_two_views_of_one_camera_see_each_its_own() -> None:
    require_gl()
    near, far = Camera("near", "corner2", 48, field_of_view=30.0), Camera("far", "corner2", 48)
    both = MetaWorldRobot(TASK, (near, far), 4)
    alone = MetaWorldRobot(TASK, (far,), 4)
    for robot in (both, alone):
        robot.begin_episode(SEED)
    seen = both.observe()
    assert (seen["near"] != seen["far"]).any()
    assert (seen["far"] == alone.observe()["far"]).all()


def test_a_scene_that_is_given_up_leaves_the_others_pictures_alone() -> None:
    require_gl()
    cameras = (Camera("large", "corner2", 64), Camera("small", "gripperPOV", 32))

    def seeing() -> MetaWorldRobot:
        robot = MetaWorldRobot(TASK, cameras, 4)
        robot.begin_episode(SEED)
        return robot

    first = seeing()
    expected = {camera.view: first.observe()[camera.view] for camera in cameras}
    second = seeing()
    del first
    gc.collect()
    for view, picture in expected.items():
        assert (second.observe()[view] == picture).all(), view
