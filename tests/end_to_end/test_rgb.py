"""The shipped policy that sees: no more of the state than a robot knows of itself, pictures, and a sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkcast.client import PlaybackConfig
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.client.sim.episode import EpisodeJob, SimulatedRobot
from chunkcast.client.sim.faults import faults_for, parse_fault
from chunkcast.language.text_encoder import find_encoder
from chunkcast.server.bundle import read_bundle
from chunkcast.simulation.metaworld_tasks import PROPRIOCEPTION
from chunkcast.v1.contract import camera_entries
from tests.conftest import SHIPPED_BUNDLE, SHIPPED_ENCODER, SHIPPED_RGB, require_gl

CHOICE_SEED = 500_000
TASK = "drawer-close-v3"


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    require_gl()
    with private_server(SHIPPED_RGB) as server:
        yield server


def test_it_is_told_of_itself_sees_the_rest_and_is_small() -> None:
    spec = read_bundle(SHIPPED_RGB).spec
    state, *pictures = spec.observations
    assert list(state.shape) == [PROPRIOCEPTION]
    assert [entry.key for entry in pictures] == [entry.key for entry in camera_entries(spec)]
    assert spec.variant.precision == "int8"
    assert 0.0 < spec.variant.action_difference < spec.variant.bound
    assert find_encoder(SHIPPED_ENCODER.parent, spec.text_encoder.sha256) == SHIPPED_ENCODER
    assert sum(file.size_bytes for file in spec.files) <= 20e6


@pytest.mark.parametrize("quality", [None, 90])
def test_it_plays_by_what_it_sees(server: PrivateServer, quality: int | None) -> None:
    robot = SimulatedRobot(server.address, "", PlaybackConfig(simulated_delay=0, image_quality=quality))
    assert robot.play(EpisodeJob(TASK, CHOICE_SEED, "close the drawer")).success


def test_it_fails_blind(server: PrivateServer) -> None:
    """What it does follows from its pictures, not from its instruction and its own place alone."""
    robot = SimulatedRobot(server.address, "", PlaybackConfig(simulated_delay=0))
    for task, fault in (("pick-place-v3", parse_fault("occluded:1")), ("pick-place-v3", None)):
        results = [robot.play(EpisodeJob(task, CHOICE_SEED + i, task, fault=fault)) for i in range(2)]
        assert [result.success for result in results] == [fault is None] * 2


def test_faults_that_it_cannot_notice_are_refused_in_one_line() -> None:
    assert "sensor-bias" in faults_for(read_bundle(SHIPPED_BUNDLE).spec)
    assert "dark" not in faults_for(read_bundle(SHIPPED_BUNDLE).spec)
    command = [Path(sys.executable).parent / "chunkcast-sim", "--bundle", SHIPPED_RGB, "--fault", "swapped"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    expected = (
        "error: --fault swapped changes nothing that metaworld-six-rgb is shown; expected one of frozen, wrong-task"
    )
    assert refused.stderr.startswith(expected)
    assert refused.stderr.count("\n") == 1
