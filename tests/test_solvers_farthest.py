"""Farthest-point choice against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pursuit.solvers import farthest_point


def by_loops(rows: np.ndarray, count: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < min(count, len(rows)):
        nearest = [min(float(np.linalg.norm(row - rows[c])) for c in chosen) for row in rows]
        left = [i for i in range(len(rows)) if i not in chosen]
        most = max(nearest[i] for i in left)
        chosen.append(min(i for i in left if nearest[i] >= most - 1e-6))
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 25), d=st.integers(1, 6), count=st.integers(1, 30), seed=st.integers(0, 99), twice=st.booleans()
)  # fmt: skip
def test_it_takes_the_farthest_row_each_time(n, d, count, seed, twice):
    rows = np.random.default_rng(seed).standard_normal((n, d))
    rows = np.repeat(rows, 2, axis=0) if twice else rows
    start = seed % len(rows)
    indices, distances = farthest_point(rows, count, start=start)
    assert indices.tolist() == by_loops(rows, count, start)
    for place in range(1, len(indices)):
        apart = np.linalg.norm(rows[indices[:place]] - rows[indices[place]], axis=1).min()
        assert distances[place] == pytest.approx(apart, abs=1e-5)
    assert distances[0] == np.inf
    assert (np.diff(distances[1:]) <= 1e-5).all()


def test_it_starts_at_the_longest_row_and_takes_equal_rows_last():
    rows = np.array([[0.0, 1], [0, 1], [0, 3], [2, 0]])
    assert farthest_point(rows, 4)[0].tolist() == [2, 3, 0, 1]
    assert farthest_point(np.ones((4, 2)), 3)[0].tolist() == [0, 1, 2]
    assert farthest_point(rows, 0)[0].tolist() == []


def test_the_result_does_not_depend_on_memory():
    rows = np.random.default_rng(0).standard_normal((700, 33)).astype(np.float32)
    first, distances = farthest_point(rows, 80)
    for memory in (1, 1 << 14):
        again, same = farthest_point(rows, 80, memory_bytes=memory)
        assert again.tolist() == first.tolist()
        np.testing.assert_array_equal(same, distances)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        farthest_point(np.array([[1.0], [np.nan]]), 1)
    with pytest.raises(ValueError, match="start must be a row in 0 … 2"):
        farthest_point(np.ones((3, 1)), 1, start=3)
    with pytest.raises(ValueError, match="count must be"):
        farthest_point(np.ones((3, 1)), -1)
