"""Columns in shards are the array that they are cut from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chunkcast.training.demonstrations import rows as rows_module
from chunkcast.training.demonstrations.rows import Rows
from chunkcast.training.demonstrations.statistics import row_statistics


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), data=st.data())
def test_any_rows_of_any_shards(lengths: list[int], data: st.DataObject) -> None:
    total = sum(lengths)
    array = np.arange(3 * total, dtype=np.float32).reshape(total, 3)
    rows = Rows.of(*np.split(array, np.cumsum(lengths)[:-1]))
    assert rows.shape == array.shape
    np.testing.assert_array_equal(rows, array)
    wanted = np.array(data.draw(st.lists(st.integers(0, total - 1), max_size=9)), np.int64)
    np.testing.assert_array_equal(rows[wanted], array[wanted])
    square = torch.from_numpy(wanted[: len(wanted) // 2 * 2].reshape(-1, 2))
    np.testing.assert_array_equal(rows.take(square), array[square.numpy()])
    first, last = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    np.testing.assert_array_equal(rows[first:last, 1:], array[first:last, 1:])
    np.testing.assert_array_equal(rows[:, [2, 0]], array[:, [2, 0]])
    np.testing.assert_array_equal(rows.narrowed(2), array[:, :2])
    number = data.draw(st.integers(0, total - 1))
    np.testing.assert_array_equal(rows[number], array[number])
    assert rows[number, 1] == array[number, 1]


def test_statistics_do_not_depend_on_shards_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    # Far from zero, where sums of squares lose what varies.
    array = (1000.0 + 0.01 * generator.standard_normal((500, 4))).astype(np.float32)
    chosen = np.flatnonzero(generator.random(500) < 0.7)
    whole = row_statistics(Rows.of(array), chosen)
    monkeypatch.setattr(rows_module, "BLOCK_ROWS", 500)
    cut = row_statistics(Rows.of(array[:33], array[33:400], array[400:]), chosen)
    torch.testing.assert_close(whole.mean, cut.mean, rtol=0, atol=0)
    torch.testing.assert_close(whole.std, cut.std, rtol=0, atol=0)
    expected = torch.from_numpy(array[chosen]).double()
    torch.testing.assert_close(whole.std.double(), expected.std(0), rtol=1e-5, atol=0)
    assert whole.low.tolist() == array[chosen].min(0).tolist()
    assert whole.high.tolist() == array[chosen].max(0).tolist()
    assert len(whole.sample) == len(chosen)
