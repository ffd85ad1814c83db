"""Non-negative least squares from inner products is scipy's from the matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls as scipy_nnls

from pursuit.solvers import nnls


@st.composite
def problems(draw):
    """Rows (m, d) and a target: any shape, with repeated, scaled, zero and dependent rows, common drift or none."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    m, d = draw(st.integers(1, 40)), draw(st.integers(1, 30))
    drift = draw(st.sampled_from([0.0, 1.0, 4.0]))
    rank = draw(st.integers(1, d))
    rows = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, d)) + drift
    kind = draw(st.sampled_from(["plain", "repeated", "zeros", "scaled"]))
    if kind == "repeated":
        rows = rows[rng.integers(0, m, m)]
    if kind == "zeros":
        rows[rng.integers(0, m, 1 + m // 3)] = 0
    if kind == "scaled":
        rows *= 10.0 ** rng.integers(-3, 4, (m, 1))
    target = rows.mean(axis=0) if draw(st.booleans()) else rng.standard_normal(d) + drift
    return rows, target


@settings(max_examples=300, deadline=None)
@given(problem=problems(), warm=st.booleans())
def test_the_fit_is_that_of_scipy(problem, warm):
    rows, target = problem
    expected, residual = scipy_nnls(rows.T, target, maxiter=10_000)
    start = np.random.default_rng(0).random(len(rows)) > 0.5 if warm else None
    weights = nnls(rows @ rows.T, rows @ target, start=start)
    size = max(float(np.linalg.norm(target)), 1e-300)
    assert (weights >= 0).all()
    assert np.linalg.norm(weights @ rows - expected @ rows) <= 1e-8 * size
    assert abs(np.linalg.norm(target - weights @ rows) - residual) <= 1e-8 * size
    used = rows[weights > 0]
    assert np.linalg.matrix_rank(used / np.linalg.norm(used, axis=1, keepdims=True), tol=1e-9) == len(used)


@pytest.mark.parametrize(("m", "d"), [(60, 80), (300, 500)])
def test_the_weights_are_those_of_scipy_where_they_are_unique(m, d):
    rng = np.random.default_rng(m)
    rows = rng.standard_normal((m, d)) + rng.standard_normal(d)
    target = rows.mean(axis=0) + rng.standard_normal(d)
    expected, _ = scipy_nnls(rows.T, target, maxiter=10_000)
    weights = nnls(rows @ rows.T, rows @ target)
    np.testing.assert_allclose(weights, expected, rtol=1e-8, atol=1e-8 * expected.max())
    np.testing.assert_array_equal(weights > 0, expected > 0)


def test_more_rows_than_dimensions_can_be_solved_from_any_start():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 60)) + rng.standard_normal(60)
    target = rows.mean(axis=0)
    for start in (None, np.ones(400), np.arange(400) % 2, np.zeros(400)):
        weights = nnls(rows @ rows.T, rows @ target, start=start)
        assert np.count_nonzero(weights) <= 60
        np.testing.assert_allclose(weights @ rows, target, atol=1e-9)


def test_of_equal_rows_one_gets_the_weight():
    rows = np.random.default_rng(0).standard_normal((1, 9)).repeat(5, axis=0)
    weights = nnls(rows @ rows.T, rows @ rows[0])
    assert np.count_nonzero(weights) == 1
    assert weights.sum() == pytest.approx(1)


def test_nothing_to_solve():
    assert nnls(np.zeros((0, 0)), np.zeros(0)).tolist() == []
    assert nnls(np.zeros((3, 3)), np.zeros(3)).tolist() == [0, 0, 0]
    assert nnls(np.eye(2), -np.ones(2)).tolist() == [0, 0]


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"gram must be \(m, m\)"):
        nnls(np.eye(3), np.ones(2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        nnls(np.eye(2), np.array([1, np.nan]))
    with pytest.raises(RuntimeError, match="did not end"):
        nnls(np.eye(3), np.ones(3), iterations=0)
