"""The shipped policy that sees: cameras, what the robot knows of itself, and a sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkcast.client import PlaybackConfig
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.client.sim.episode import EpisodeJob, EpisodeResult, SimulatedRobot
from chunkcast.client.sim.faults import Fault, faults_for, parse_fault
from chunkcast.client.sim.metaworld_robot import STATE_KEY
from chunkcast.language.text_encoder import find_encoder
from chunkcast.server.bundle import read_bundle
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import camera_entries
from tests.conftest import SHIPPED_BUNDLE, SHIPPED_ENCODER, SHIPPED_RGB, require_gl

CHOICE_SEED = 500_000
MOST_BYTES = 20e6
"""Of a shipped policy that sees."""


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    require_gl()
    with private_server(SHIPPED_RGB) as server:
        yield server


def play(
    server: PrivateServer,
    task: str,
    told: str,
    episodes: int,
    *,
    fault: Fault | None = None,
    image_quality: int | None = None,
) -> list[EpisodeResult]:
    robot = SimulatedRobot(server.address, "", PlaybackConfig(simulated_delay=0, image_quality=image_quality))
    return [robot.play(EpisodeJob(task, CHOICE_SEED + i, told, fault)) for i in range(episodes)]


def test_it_is_shown_what_a_robot_would_have() -> None:
    spec = read_bundle(SHIPPED_RGB).spec
    assert [list(entry.shape) for entry in spec.observations if entry.key == STATE_KEY] == [[4]]
    cameras = camera_entries(spec)
    assert cameras[0].shape[0] == 128
    assert all(camera.dtype == pb.DATA_TYPE_UINT8 and camera.shape[2] == 3 for camera in cameras)
    assert spec.variant.precision == "int8"
    assert spec.variant.action_difference <= spec.variant.bound
    assert find_encoder(SHIPPED_ENCODER.parent, spec.text_encoder.sha256) == SHIPPED_ENCODER
    assert sum(file.stat().st_size for file in SHIPPED_RGB.iterdir()) <= MOST_BYTES


def test_a_robot_changes_policies_by_name_alone() -> None:
    """The six tasks of the policy of states, its actions and its rate; only what is observed differs."""
    of_states, seeing = read_bundle(SHIPPED_BUNDLE).spec, read_bundle(SHIPPED_RGB).spec
    assert [each.task for each in seeing.instructions] == [each.text for each in of_states.instructions]
    assert list(seeing.action.elements) == list(of_states.action.elements)
    assert seeing.action.control_rate_hz == of_states.action.control_rate_hz


@pytest.mark.parametrize("image_quality", [None, 90], ids=["raw", "jpeg"])
def test_it_plays_what_it_is_told_in_words_of_ones_own(server: PrivateServer, image_quality: int | None) -> None:
    results = play(server, "drawer-close-v3", "please close that drawer", 2, image_quality=image_quality)
    assert all(result.success for result in results)


def test_it_needs_its_eyes(server: PrivateServer) -> None:
    """A puck and a goal that only pictures tell of: carried there, and not if the cameras are covered."""
    task = "pick-place-v3"
    assert sum(result.success for result in play(server, task, task, 4)) >= 3
    covered = play(server, task, task, 2, fault=parse_fault("occluded:1"))
    assert not any(result.success for result in covered)


def test_faults_of_what_it_is_not_shown_are_refused(server: PrivateServer) -> None:
    spec = read_bundle(SHIPPED_RGB).spec
    assert {"occluded", "dark", "blurred", "camera-moved", "frozen-picture", "delay"} < set(faults_for(spec))
    assert not {"swapped", "sensor-bias"} & set(faults_for(spec))
    command = [str(Path(sys.executable).parent / "chunkcast-sim"), "--server", server.address, "--fault", "swapped"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --fault swapped changes nothing that metaworld-six-rgb is shown")
    assert refused.stderr.count("\n") == 1
