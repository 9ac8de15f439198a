"""What a simulated robot is told, and success by difficulty."""

from __future__ import annotations

from pathlib import Path

import pytest

from chunkcast.client.sim.cli import BadFlag, SimConfig, _jobs
from chunkcast.client.sim.difficulty import GROUP_OF, by_difficulty
from chunkcast.client.sim.phrasing import BadTable, read_phrases, task_of
from chunkcast.simulation.success import success_rate
from chunkcast.v1 import policy_pb2 as pb

TABLE = """
[drawer-open-v3]
instruction = "open the drawer"
held_out = ["get it open", "pull it open"]

[door-lock-v3]
instruction = "lock the door"
held_out = ["bolt it"]
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "table.toml"
    file.write_text(TABLE)
    return file


@pytest.fixture
def spec() -> pb.PolicySpec:
    return pb.PolicySpec(
        name="told",
        instructions=[
            pb.Instruction(text="open the drawer", task="drawer-open-v3"),
            pb.Instruction(text="door-lock-v3"),
        ],
        action=pb.ActionSpec(horizon=16),
    )


def test_an_episode_takes_the_texts_in_turn(table: Path, spec: pb.PolicySpec, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    config = SimConfig(bundle=tmp_path, instructions=table, episodes=3, tasks="drawer-open door-lock-v3,drawer-open")
    told = [(job.task, job.seed - config.seed, job.instruction) for job in _jobs(config, spec)]
    assert told == [
        ("drawer-open-v3", 0, "get it open"),
        ("drawer-open-v3", 1, "pull it open"),
        ("drawer-open-v3", 2, "get it open"),
        ("door-lock-v3", 0, "bolt it"),
        ("door-lock-v3", 1, "bolt it"),
        ("door-lock-v3", 2, "bolt it"),
    ]
    own = _jobs(SimConfig(bundle=tmp_path, episodes=1), spec)
    assert [(job.task, job.instruction) for job in own] == [
        ("drawer-open-v3", "open the drawer"),
        ("door-lock-v3", "door-lock-v3"),
    ]
    with pytest.raises(BadFlag, match="told does not know 'hammer'; expected some of drawer-open-v3, door-lock-v3"):
        _jobs(SimConfig(bundle=tmp_path, tasks="hammer"), spec)
    with pytest.raises(BadFlag, match="has no paraphrases for drawer-open-v3"):
        _jobs(SimConfig(bundle=tmp_path, instructions=table, phrasing="paraphrases"), spec)


def test_tables_that_cannot_be_used(table: Path, tmp_path: Path) -> None:
    assert read_phrases(table, "instruction", ["door-lock-v3"]) == {"door-lock-v3": ["lock the door"]}
    with pytest.raises(BadTable, match="has no held_out for hammer-v3"):
        read_phrases(table, "held_out", ["hammer-v3"])
    with pytest.raises(BadTable, match="cannot be read"):
        read_phrases(tmp_path / "missing.toml", "held_out", [])
    table.write_text("[")
    with pytest.raises(BadTable, match="is not TOML"):
        read_phrases(table, "held_out", [])


def test_the_mean_of_the_groups_is_not_that_of_the_tasks() -> None:
    assert len(GROUP_OF) == 11 + 6 + 5
    tasks = {task: success_rate(10, 20) for task in GROUP_OF}
    tasks |= {f"easy-{number}": success_rate(20, 20) for number in range(28)}
    tasks["stick-pull-v3"] = success_rate(0, 20)
    found = by_difficulty(tasks)
    assert found is not None
    assert {group: facts["success_rate"] for group, facts in found["groups"].items()} == {
        "easy": 1.0,
        "medium": 0.5,
        "hard": 0.5,
        "very hard": 0.4,
    }
    assert (found["groups"]["hard"]["episodes"], found["groups"]["hard"]["ci95"]) == (120, [0.4119, 0.5881])
    assert (found["mean_of_groups"], found["lowest_task"]) == (0.6, "stick-pull-v3")
    assert by_difficulty({"reach-v3": success_rate(20, 20)}) is None


def test_a_task_without_a_plain_name_is_its_text(spec: pb.PolicySpec) -> None:
    assert [task_of(instruction) for instruction in spec.instructions] == ["drawer-open-v3", "door-lock-v3"]
