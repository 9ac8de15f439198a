"""Windows: history before a tick, actions from it on, whole episodes on one side of the split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chunkcast.training.demonstrations import Demonstrations
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.language.instructions import task_names
from chunkcast.training.windows import Windows, split_by_episode

LENGTHS = (5, 3, 4, 6)
TASKS = ("a", "a", "b", "b")


@pytest.fixture
def demonstrations() -> Demonstrations:
    """Episodes whose state and action are 100 x episode + tick; what was executed differs at each tick 2."""
    index = np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS)
    values = np.concatenate([100 * e + np.arange(length) for e, length in enumerate(LENGTHS)]).astype(np.float32)
    executed = np.where(values % 100 == 2, values + 0.5, values).astype(np.float32)
    return Demonstrations(
        values[:, None], values[:, None], executed[:, None], index, TASKS, (0, 1, 0, 1), {"sha256": ""}
    )


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


def test_the_split_takes_whole_episodes_of_every_task(demonstrations: Demonstrations) -> None:
    training, validation = split_by_episode(demonstrations, 0.05, seed=3)
    assert sorted([*training, *validation]) == [0, 1, 2, 3]
    assert sorted(TASKS[episode] for episode in validation) == ["a", "b"]
    again = split_by_episode(demonstrations, 0.05, seed=3)
    np.testing.assert_array_equal(validation, again[1])


def test_one_episode_cannot_be_split(demonstrations: Demonstrations) -> None:
    single = Demonstrations(
        demonstrations.states[:5],
        demonstrations.actions[:5],
        demonstrations.executed[:5],
        demonstrations.episode_index[:5],
        ("a",),
        (0,),
        {},
    )
    with pytest.raises(DemonstrationsError, match="a has 1 episode; a split by episode needs 2 or more"):
        split_by_episode(single, 0.1, seed=0)
