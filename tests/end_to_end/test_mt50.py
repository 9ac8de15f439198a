"""The shipped policy of fifty tasks, told by name, by instruction and in words that it has never heard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chunkcast.client import PlaybackConfig
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.client.sim.episode import EpisodeJob, SimulatedRobot
from chunkcast.language.text_encoder import find_encoder
from chunkcast.server.bundle import read_bundle
from chunkcast.simulation.metaworld_tasks import all_tasks
from chunkcast.training.language.instruction_table import METAWORLD_INSTRUCTIONS, read_instruction_table
from tests.conftest import SHIPPED_ENCODER, SHIPPED_MT50

CHOICE_SEED = 500_000


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with private_server(SHIPPED_MT50) as server:
        yield server


def test_it_knows_every_task_and_none_of_the_words_held_out() -> None:
    spec = read_bundle(SHIPPED_MT50).spec
    table = read_instruction_table(METAWORLD_INSTRUCTIONS)
    assert [each.task for each in spec.instructions] == list(all_tasks())
    for each in spec.instructions:
        told = table[each.task]
        assert (each.text, tuple(each.paraphrases)) == (told.instruction, told.paraphrases)
        assert not set(each.paraphrases) & set(told.held_out)
    assert find_encoder(SHIPPED_ENCODER.parent, spec.text_encoder.sha256) == SHIPPED_ENCODER
    assert all(file.size_bytes <= 30e6 for file in spec.files)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("drawer-close-v3", "drawer-close-v3"),
        ("window-open-v3", "open the window"),
        ("button-press-topdown-v3", "press the button from the top"),
    ],
)
def test_it_plays_what_it_is_told(server: PrivateServer, task: str, told: str) -> None:
    robot = SimulatedRobot(server.address, "", PlaybackConfig(simulated_delay=0))
    results = [robot.play(EpisodeJob(task, CHOICE_SEED + i, told)) for i in range(2)]
    assert all(result.success for result in results)


def test_words_decide_where_the_scene_leaves_it_open(server: PrivateServer) -> None:
    """A puck and a goal: to bring it there, or to leave it. 20 of 20 episodes succeeded under their own words, none
    under the other's.
    """
    robot = SimulatedRobot(server.address, "", PlaybackConfig(simulated_delay=0))
    for scene in ("pick-place-v3", "push-v3"):
        for told, success in ((scene, True), ("reach the goal position", False)):
            results = [robot.play(EpisodeJob(scene, CHOICE_SEED + i, told)) for i in range(2)]
            assert [result.success for result in results] == [success] * 2, (scene, told)
