"""Where the solvers came to an end too early once."""

from __future__ import annotations

import numpy as np
import pytest

from pursuit.solvers import compressive_pursuit, matching_pursuit
from textbook_pursuit import textbook_pursuit


@pytest.mark.parametrize("scale", [1e-6, 1e-8, 1e-9])
def test_rows_far_shorter_than_the_ridge_are_chosen_as_by_the_textbook(scale):
    rows = np.random.default_rng(0).standard_normal((40, 8))
    rows *= scale / np.linalg.norm(rows, axis=1)[:, None]
    found = matching_pursuit(rows, rows.mean(axis=0), 5)
    indices, weights, _ = textbook_pursuit(rows, rows.mean(axis=0), 5)
    assert found.indices.tolist() == list(indices)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6)
    assert found.filled == 0


def clustered(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """A goal with nearly as many rows as dimensions."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(10, 80))
    n, k = int(rng.integers(3 * d, 12 * d)), int(d * rng.uniform(0.5, 0.95))
    rows = rng.standard_normal((8, d))[rng.integers(0, 8, n)] + 0.3 * rng.standard_normal((n, d))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32).astype(float)
    goal = rows[rng.integers(0, n, 5)].mean(0) + 0.1 * rng.standard_normal(d) if seed % 2 else rows.mean(0)
    return rows, goal, k


@pytest.mark.parametrize("seed", [94, 331])  # where a swap leaves fewer rows than it found
def test_a_first_pass_that_ends_short_of_the_budget_has_no_row_left_to_gain_by(seed: int) -> None:
    rows, goal, k = clustered(seed)
    found = compressive_pursuit(rows, goal, k)
    first = found.indices[: found.rank]
    residual = goal - found.weights[: found.rank] @ rows[first]
    scores = rows @ residual
    scores[first] = -np.inf
    assert found.rank == k or scores.max() <= 1e-6 * np.linalg.norm(residual)
