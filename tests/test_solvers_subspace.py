"""The subspace is that of the singular vectors."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pursuit.solvers import subspace


def decaying(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows with a mean and a spectrum that falls."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, min(n, d))) * 0.8 ** np.arange(min(n, d)) @ rng.standard_normal((min(n, d), d)) + 1


@pytest.mark.parametrize(("n", "d"), [(500, 40), (30, 200), (40, 40), (2500, 60)])
@pytest.mark.parametrize("exact", [True, False])
def test_directions_are_the_leading_right_singular_vectors(n, d, exact, monkeypatch):
    rows = decaying(n, d)
    if not exact:
        monkeypatch.setattr(importlib.import_module("pursuit.solvers.subspace"), "EXACT", 0)
    ours = subspace(rows, 6)
    expected = np.linalg.svd(rows, full_matrices=False)[2][:6].T
    np.testing.assert_allclose(np.abs((ours * expected).sum(axis=0)), 1, atol=1e-6)
    np.testing.assert_allclose(ours.T @ ours, np.eye(6), atol=1e-10)
    assert (ours[np.abs(ours).argmax(axis=0), np.arange(6)] > 0).all()


def test_the_mean_is_kept_because_nothing_is_centred():
    rng = np.random.default_rng(0)
    rows = 5 + rng.standard_normal((300, 20))
    first = subspace(rows, 1)[:, 0]
    assert first @ rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)) > 0.99


def test_no_more_directions_than_the_rows_span():
    rows = np.outer(np.arange(1, 50), np.ones(30)) + np.outer(np.ones(49), np.arange(30))
    for served in (rows, rows[:10]):
        assert subspace(served, 8).shape == (30, 2)


def test_a_sample_is_seeded_and_nearly_as_good():
    rows = decaying(4000, 30)
    first, again, other = (subspace(rows, 3, seed=seed, sample=800) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    kept = [np.linalg.norm(rows @ basis) for basis in (first, subspace(rows, 3))]
    assert kept[0] > 0.995 * kept[1]


def test_wrong_input_is_refused():
    for rows, dimension, message in (
        (np.zeros((0, 3)), 1, "at least one row"),
        (np.ones((4, 3)), 0, "dimension must be at least 1"),
        (np.zeros((4, 3)), 2, "all zero"),
        (np.array([[1.0], [np.nan]]), 1, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            subspace(rows, dimension)
