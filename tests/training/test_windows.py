"""Windows: history before a tick, actions from it on, whole episodes on one side of the split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.demonstrations.rows import Rows
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.language.instructions import Instructions, task_names
from chunkcast.training.windows import Windows, split_by_episode

LENGTHS = (5, 3, 4, 6)
TASKS = ("a", "a", "b", "b")


@pytest.fixture
def demonstrations() -> Demonstrations:
    """Episodes whose state and action are 100 x episode + tick; what was executed differs at each tick 2."""
    index = np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS)
    values = np.concatenate([100 * e + np.arange(length) for e, length in enumerate(LENGTHS)]).astype(np.float32)
    executed = np.where(values % 100 == 2, values + 0.5, values).astype(np.float32)
    rows = Rows.of(values[:, None])
    return Demonstrations(rows, rows, Rows.of(executed[:, None]), index, TASKS, (0, 1, 0, 1), {"sha256": ""})


def windows(demonstrations: Demonstrations, episodes: list[int]) -> Windows:
    return Windows(
        demonstrations,
        np.array(episodes),
        observation_steps=3,
        horizon=4,
        instructions=task_names(demonstrations.tasks),
        device=torch.device("cpu"),
    )


def test_a_window_for_every_tick(demonstrations: Demonstrations) -> None:
    assert len(windows(demonstrations, [0, 3])) == LENGTHS[0] + LENGTHS[3]


def test_history_and_future_stay_within_the_episode(demonstrations: Demonstrations) -> None:
    batch = windows(demonstrations, [1, 2]).take(torch.tensor([0, 2, 3]))
    # Episode 1 at its first and last tick, episode 2 at its first.
    assert batch.state[..., 0].tolist() == [[100, 100, 100], [100, 101, 102], [200, 200, 200]]
    assert batch.actions[..., 0].tolist() == [[100, 101, 102, 102], [102] * 4, [200, 201, 202, 203]]
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch.instruction.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_actions_after_a_disturbance_that_was_not_foreseen_are_no_targets(demonstrations: Demonstrations) -> None:
    batch = windows(demonstrations, [3]).take(torch.tensor([0, 1, 2, 3, 5]))
    assert batch.executed[0, :, 0].tolist() == [300, 301, 302.5, 303]
    nothing_committed = torch.zeros(5, dtype=torch.int64)
    # The expert's action at the disturbed tick still answers a state that could be foreseen; the next one does not.
    assert batch.foreseeable(nothing_committed).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 0],  # the episode ends
        [1, 0, 0, 0],
    ]
    # A disturbance that was committed is known.
    assert batch.foreseeable(torch.tensor([3, 2, 1, 0, 3])).tolist() == [
        [0, 0, 0, 1],
        [0, 0, 1, 1],
        [0, 1, 1, 1],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]


def test_an_epoch_takes_each_window_at_most_once(demonstrations: Demonstrations) -> None:
    both = windows(demonstrations, [0, 1, 2, 3])
    seen = torch.cat([batch.actions[:, 0, 0] for batch in both.shuffled(4, torch.Generator().manual_seed(0))])
    assert len(seen) == 16  # of 18 windows, in full batches
    assert len(set(seen.tolist())) == 16
    in_order = torch.cat([batch.actions[:, 0, 0] for batch in both.in_order(4)])
    assert in_order.tolist() == demonstrations.actions[:, 0].tolist()


def test_an_epoch_may_take_some_windows_of_each_episode(demonstrations: Demonstrations) -> None:
    both, generator = windows(demonstrations, [0, 1, 2, 3]), torch.Generator().manual_seed(0)
    assert (both.epoch_size(), both.epoch_size(4), both.epoch_size(100)) == (18, 15, 18)
    epochs = [
        torch.cat([batch.actions[:, 0, 0] for batch in both.shuffled(1, generator, per_episode=4)]).tolist()
        for _ in range(2)
    ]
    for seen in epochs:
        assert len(set(seen)) == len(seen) == 15
        assert sorted(int(value) // 100 for value in seen) == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 4
    assert sorted(epochs[0]) != sorted(epochs[1])  # drawn anew


def test_only_so_many_windows_are_held(demonstrations: Demonstrations) -> None:
    some = Windows(
        demonstrations,
        np.arange(4),
        observation_steps=1,
        horizon=1,
        instructions=task_names(demonstrations.tasks),
        device=torch.device("cpu"),
        limit=3,
    )
    assert [int(batch.actions[0, 0, 0]) for batch in some.in_order(1)] == [0, 200, 305]


def test_an_epoch_tells_a_task_by_each_of_its_phrases(demonstrations: Demonstrations) -> None:
    embeddings = torch.arange(6.0).reshape(2, 3, 1)
    told = Windows(
        demonstrations,
        np.arange(4),
        observation_steps=1,
        horizon=1,
        instructions=Instructions(("a", "b"), (("",) * 3,) * 2, embeddings, None),
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(0)
    pairs = {
        (int(batch.actions[0, 0, 0]) >= 200, float(batch.instruction[0, 0]))
        for _ in range(10)
        for batch in told.shuffled(1, generator)
    }
    assert pairs == {(False, 0.0), (False, 1.0), (False, 2.0), (True, 3.0), (True, 4.0), (True, 5.0)}
    # Validation hears the instruction itself.
    assert {float(batch.instruction[0, 0]) for batch in told.in_order(1)} == {0.0, 3.0}


def test_the_split_takes_whole_episodes_of_every_task(demonstrations: Demonstrations) -> None:
    training, validation = split_by_episode(demonstrations, 0.05, seed=3)
    assert sorted([*training, *validation]) == [0, 1, 2, 3]
    assert sorted(TASKS[episode] for episode in validation) == ["a", "b"]
    again = split_by_episode(demonstrations, 0.05, seed=3)
    np.testing.assert_array_equal(validation, again[1])


def test_what_was_done_once_is_trained_on(demonstrations: Demonstrations) -> None:
    once = replace(demonstrations, episode_tasks=("once", "a", "b", "b"))
    train, validation = split_by_episode(once, 0.05, seed=3)
    assert 0 in train
    assert len(train) + len(validation) == len(once.episode_tasks)
    assert [once.episode_tasks[episode] for episode in validation] == ["b"]


def test_one_episode_cannot_be_split(demonstrations: Demonstrations) -> None:
    single = Demonstrations(
        Rows.of(demonstrations.states[:5]),
        Rows.of(demonstrations.actions[:5]),
        Rows.of(demonstrations.executed[:5]),
        demonstrations.episode_index[:5],
        ("a",),
        (0,),
        {},
    )
    with pytest.raises(
        DemonstrationsError, match=r"one episode of each task \(a\); a split by episode needs 2 of some"
    ):
        split_by_episode(single, 0.1, seed=0)
