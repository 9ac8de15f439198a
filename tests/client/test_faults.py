"""Faults of a simulated robot: each changes what it says it does, from its tick on, and follows from the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from chunkcast.client import ChunkPlayer, PlaybackConfig, PolicyClient, PolicyUnhealthy
from chunkcast.client.private_server import PrivateServer
from chunkcast.client.sim.episode import EpisodeJob, SimulatedRobot
from chunkcast.client.sim.faults import FAULTS, Fault, FaultyRobot, UnknownFault, described, parse_fault
from chunkcast.client.sim.metaworld_robot import STATE_KEY, MetaWorldRobot
from chunkcast.simulation.cameras import Camera
from tests.conftest import SHIPPED_BUNDLE, ServeBundle, require_gl

TASK = "pick-place-v3"
SEED = 500_000
FORWARD = np.array([0.5, 0.5, 0.0, 1.0], np.float32)


@pytest.fixture(scope="module")
def arm() -> MetaWorldRobot:
    return MetaWorldRobot(TASK)


def played(arm: MetaWorldRobot, fault: str, ticks: int = 30, seed: int = SEED) -> npt.NDArray[np.float32]:
    """What is observed before each of some ticks forward, ``[ticks, 39]``."""
    arm.begin_episode(seed)
    robot = FaultyRobot(arm, parse_fault(fault), seed) if fault else arm
    seen = []
    for _ in range(ticks):
        seen.append(robot.observe()[STATE_KEY])
        robot.act(FORWARD)
    return np.stack(seen)


CAMERA_FAULTS = tuple(name for name, kind in FAULTS.items() if kind.needs == "pictures")


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in ("wrong-task", *CAMERA_FAULTS)])
def test_a_fault_is_there_from_its_tick_on_and_the_same_again(arm: MetaWorldRobot, fault: str) -> None:
    late = f"{fault}@10"
    healthy, faulty = played(arm, ""), played(arm, late)
    first = 10 if fault in ("sensor-bias", "sensor-noise", "swapped") else 11
    assert (healthy[:first] == faulty[:first]).all()
    assert (healthy[first:] != faulty[first:]).any()
    assert (played(arm, late) == faulty).all()
    # What it did to the scene is undone by the next episode.
    assert (played(arm, "") == healthy).all()


@pytest.mark.parametrize("fault", CAMERA_FAULTS)
def test_a_cameras_fault_changes_its_pictures_and_nothing_else(fault: str) -> None:
    require_gl()
    seeing = MetaWorldRobot(TASK, (Camera("eye", "corner2", 48, turned=True),), 4)

    def seen(fault: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        seeing.begin_episode(SEED)
        robot = FaultyRobot(seeing, parse_fault(fault), SEED) if fault else seeing
        states, pictures = [], []
        for _ in range(10):
            observed = robot.observe()
            states.append(observed[STATE_KEY])
            pictures.append(observed["eye"])
            robot.act(FORWARD)
        return np.stack(states), np.stack(pictures)

    states, pictures = seen("")
    faulty_states, faulty_pictures = seen(f"{fault}@5")
    assert states.shape == (10, 4)
    assert (faulty_states == states).all()
    assert (faulty_pictures[:5] == pictures[:5]).all()
    assert (faulty_pictures[6:] != pictures[6:]).any(axis=(1, 2, 3)).all()
    # The next episode's cameras are where they were, and see as they did.
    assert (seen("")[1] == pictures).all()


def test_sizes_mean_what_they_say(arm: MetaWorldRobot) -> None:
    healthy = played(arm, "")
    bias = (played(arm, "sensor-bias:0.05") - healthy)[:, 4:7]
    assert np.linalg.norm(bias, axis=1) == pytest.approx(0.05, rel=1e-3)
    noise = (played(arm, "sensor-noise:0.02", ticks=300) - played(arm, "", ticks=300))[:, :3]
    assert noise.std() == pytest.approx(0.02, rel=0.15)
    moved = played(arm, "object-moved:0.1@5")
    jump = moved[6, 4:6] - moved[5, 4:6] - (healthy[6, 4:6] - healthy[5, 4:6])
    assert np.linalg.norm(jump) == pytest.approx(0.1, rel=0.05)
    slow = played(arm, "action-scale:0.5")
    assert np.linalg.norm(slow[-1, :2] - slow[0, :2]) < 0.7 * np.linalg.norm(healthy[-1, :2] - healthy[0, :2])
    frozen = played(arm, "frozen@7")
    assert (frozen[7:] == frozen[7]).all()
    late = played(arm, "delay:6")
    assert late[6, :3] == pytest.approx(late[0, :3], abs=5e-3), "nothing moves before the first action is due"
    assert played(arm, "gripper-stuck")[-1, 3] > healthy[-1, 3]
    swapped = played(arm, "swapped")
    assert (swapped[:, [1, 0, 2, 3, 5, 4, 6]] == healthy[:, :7]).all()


def test_the_wrong_task_is_another_of_the_policys(arm: MetaWorldRobot) -> None:
    known = ["a", "b"]
    told = {FaultyRobot(arm, parse_fault("wrong-task"), seed).instruction(TASK, known) for seed in range(20)}
    assert told == {"a", "b"}
    assert FaultyRobot(arm, parse_fault("frozen"), 0).instruction(TASK, known) == TASK
    assert FaultyRobot(arm, parse_fault("wrong-task"), 0).instruction(TASK, []) == TASK


def test_a_fault_is_read_from_a_flag() -> None:
    assert parse_fault("delay:3@40") == Fault("delay", 3.0, 40)
    assert parse_fault("object-moved") == Fault("object-moved", FAULTS["object-moved"].size, 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rust", "expected NAME[:SIZE][@TICK] with one of sensor-bias, "),
        ("delay:many", "the size is 'many', expected 0 to 100 ticks"),
        ("delay:nan", "the size is 'nan'"),
        ("sensor-bias:-1", "expected 0 to 1 m"),
        ("frozen:3", "frozen has no size"),
        ("frozen@-1", "the first tick is '-1'"),
        ("frozen@500", "the first tick is '500', expected 0 to 499"),
        ("delay:2.5", "expected whole ticks"),
        ("wrong-task@40", "an episode has one instruction"),
        ("frozen@", ""),
    ],
)
def test_what_is_no_fault_is_refused_in_one_line(text: str, message: str) -> None:
    if not message:
        assert parse_fault(text) == parse_fault("frozen")
        return
    with pytest.raises(UnknownFault) as refused:
        parse_fault(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_fault_is_described_with_its_size() -> None:
    assert described(parse_fault("occluded")) == "something grey covers this share of each picture: 0.1"
    assert described(parse_fault("delay:3")) == "an action is executed so many ticks after its time: 3 ticks"
    assert described(parse_fault("frozen")) == "the observation stands still"


def test_words_that_the_policy_does_not_know_are_a_failure(shipped_server: PrivateServer) -> None:
    robot = SimulatedRobot(shipped_server.address, "", PlaybackConfig(simulated_delay=0))
    refused = robot.play(EpisodeJob(TASK, SEED, "juggle"))
    assert (refused.success, refused.steps, refused.instruction) == (False, 0, "juggle")
    assert "instruction 'juggle' is not known" in refused.refusal
    assert robot.play(EpisodeJob(TASK, SEED, TASK)).success  # the robot goes on


def test_a_trace_is_what_was_sent_and_answered(shipped_server: PrivateServer, tmp_path: Path) -> None:
    robot = SimulatedRobot(shipped_server.address, "", PlaybackConfig(simulated_delay=0))
    result = robot.play(EpisodeJob(TASK, SEED, TASK, trace=tmp_path / "trace.npz"))
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as trace:
        assert (trace["step"] == np.arange(0, result.steps, 4)).all()
        assert trace["actions"].shape == (len(trace["step"]), 16, 4)
        assert trace[f"observation/{STATE_KEY}"].shape == (len(trace["step"]), 39)
        assert str(trace["instruction"]) == TASK
        assert bool(trace["success"])
    assert [file.name for file in tmp_path.iterdir()] == ["trace.npz"]


def test_a_robot_with_a_fault_is_stopped_while_it_moves(serve_bundle: ServeBundle, arm: MetaWorldRobot) -> None:
    """The whole way: a faulty sensor, the server's judgement in a reply, and a robot that is set to stop."""
    server = serve_bundle(SHIPPED_BUNDLE, "--health-share", "1")
    arm.begin_episode(SEED)
    robot = FaultyRobot(arm, parse_fault("swapped@12"), SEED)
    stopped = []
    robot.safe_stop = lambda: stopped.append(arm.steps)  # type: ignore[method-assign]
    # Not what is tested: a machine that is busy with other things.
    config = PlaybackConfig(on_unhealthy="stop", max_starved_ticks=400)
    with (
        PolicyClient(server.address) as client,
        ChunkPlayer(client, config=config, timeout=30.0) as player,
        pytest.raises(PolicyUnhealthy, match="out of its element"),
    ):
        player.run(robot, TASK, max_ticks=400, rate_hz=40.0)
    assert len(stopped) == 1
    assert 12 < stopped[0] < 100


def test_a_slowed_robot_is_slow_to_the_end_and_arrives(shipped_server: PrivateServer, arm: MetaWorldRobot) -> None:
    displacement = ("hand_dx", "hand_dy", "hand_dz")
    config = PlaybackConfig(on_unhealthy="slow", slow_elements=displacement, simulated_delay=0)
    steps = {}
    for alarmed in (False, True):
        with PolicyClient(shipped_server.address) as client, ChunkPlayer(client, config=config, timeout=30.0) as player:
            arm.begin_episode(SEED)
            player.begin_episode(TASK, noise_seed=SEED)
            while not arm.done:
                if alarmed and arm.steps == 8:
                    player._playback.unhealthy_at = 8  # a judgement would be replaced by the server's own
                action = player.next_action(arm.observe())
                assert not alarmed or arm.steps < 8 or abs(action[:3]).max() <= 0.5
                arm.act(action)
        assert arm.success
        steps[alarmed] = arm.steps
    assert steps[True] > 1.2 * steps[False]
