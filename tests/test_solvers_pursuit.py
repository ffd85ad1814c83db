"""matching_pursuit chooses what the textbook algorithm chooses, index for index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pursuit.solvers import PursuitResult, matching_pursuit
from pursuit.solvers.cholesky import GrowingCholesky
from pursuit.solvers.rows import rank_descending
from solver_matrices import Elsewhere
from textbook_pursuit import textbook_pursuit


def assert_same(
    atoms: np.ndarray, target: np.ndarray, budget: int, *, memory_bytes: int = 1 << 30, **how
) -> PursuitResult:
    expected, weights, filled = textbook_pursuit(atoms, target, budget, **how)
    result = matching_pursuit(atoms, target, budget, memory_bytes=memory_bytes, **how)
    assert result.indices.tolist() == expected
    np.testing.assert_allclose(result.weights, weights, rtol=1e-6, atol=1e-9)
    assert result.filled == filled
    return result


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(n: int, d: int, groups: int, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((groups, d))[rng.integers(0, groups, n)] + noise * rng.standard_normal((n, d)))


@st.composite
def problems(draw):
    """Small problems of every awkward kind: whole numbers (exact ties), duplicates, zero rows, narrow cones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(1, 40)), draw(st.integers(1, 16))
    atoms = rng.standard_normal((n, d))
    kind = draw(st.sampled_from(["plain", "whole", "duplicates", "cone", "scales"]))
    if kind == "whole":
        atoms = rng.integers(-2, 3, (n, d)).astype(float)
    elif kind == "duplicates":
        atoms = atoms[rng.integers(0, n, n)]
        atoms[rng.random(n) < 0.2] = 0
    elif kind == "cone":
        atoms = unit(np.abs(atoms) + 1)
    elif kind == "scales":
        atoms *= 10.0 ** rng.integers(-3, 4, (n, 1))
    target = atoms.mean(axis=0) if draw(st.booleans()) else rng.standard_normal(d)
    return atoms, target, draw(st.integers(0, n + 5))


@settings(max_examples=400, deadline=None)
@given(
    problem=problems(),
    ridge=st.sampled_from([0.0, 1e-3, 1.0, 10.0]),
    positive=st.booleans(),
    ridge_first=st.booleans(),
    memory_bytes=st.sampled_from([1 << 30, 5000, 800, 1]),
)
def test_equals_the_textbook_for_odd_shapes(problem, ridge, positive, ridge_first, memory_bytes):
    atoms, target, budget = problem
    assert_same(
        atoms, target, budget, ridge=ridge, positive=positive, ridge_first=ridge_first, memory_bytes=memory_bytes
    )


LARGE = {
    "random": unit(np.random.default_rng(0).standard_normal((3000, 64))),
    "clustered": clustered(3000, 64, 10, 0.7),
    "narrow clusters": clustered(3000, 64, 10, 1e-3),
    "one narrow cone": clustered(3000, 64, 1, 1e-4),
    "duplicates": clustered(1000, 64, 5, 0.5)[np.random.default_rng(1).integers(0, 1000, 3000)],
    "one row far longer": np.concatenate([clustered(2999, 64, 5, 0.5), np.full((1, 64), 1e5)]),
}


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("kind", LARGE)
def test_equals_the_textbook_where_it_runs_ahead_on_a_shortlist(kind, ridge):
    atoms = LARGE[kind].astype(np.float32)
    assert_same(atoms, atoms.mean(axis=0, dtype=np.float64), 60, ridge=ridge)


@pytest.mark.parametrize("kind", ["clustered", "narrow clusters", "duplicates"])
def test_equals_the_textbook_without_signs(kind):
    signs = np.random.default_rng(2).choice([-1.0, 1.0], (3000, 1))
    atoms = LARGE[kind] * signs
    target = np.random.default_rng(3).standard_normal(64)
    assert_same(atoms, target, 50, ridge=0.0, positive=False)


@pytest.mark.parametrize("memory_bytes", [1, 20_000, 300_000, 2_000_000])
def test_equals_the_textbook_whatever_the_memory(memory_bytes):
    atoms = LARGE["clustered"].astype(np.float32)
    assert_same(atoms, atoms.mean(axis=0, dtype=np.float64), 25, ridge=0.1, memory_bytes=memory_bytes)


@pytest.mark.parametrize("groups", [5, 20])
@pytest.mark.parametrize("positive", [True, False])
def test_equals_the_textbook_where_float32_tells_nothing_apart(groups, positive):
    atoms = clustered(3000, 64, groups, 1e-8)
    assert_same(atoms, np.random.default_rng(5).standard_normal(64), 30, ridge=0.01, positive=positive)


def test_large_and_small_numbers_do_not_overflow_the_screening():
    for scale in (1e-20, 1e20):
        atoms = LARGE["clustered"] * scale
        assert_same(atoms, atoms.mean(axis=0), 30, ridge=0.01 * scale**2)


class OnlyRows:
    """A matrix that, like a store on disk, gives rows and nothing else, and counts them."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.shape, self.largest, self.read = rows, rows.shape, 0, 0

    def __getitem__(self, rows):
        out = self._rows[rows].copy()
        self.largest, self.read = max(self.largest, len(out)), self.read + len(out)
        return out


def test_the_bits_of_the_result_do_not_depend_on_memory_or_on_how_atoms_are_served():
    atoms = LARGE["clustered"].astype(np.float32)
    target = atoms.mean(axis=0, dtype=np.float64)
    first = matching_pursuit(atoms, target, 40, ridge=0.1)
    served = [
        (atoms, 1 << 30),
        (OnlyRows(atoms), 1 << 30),
        (OnlyRows(atoms), 100_000),
        (np.asfortranarray(atoms), 1 << 20),
    ]
    for matrix, memory_bytes in served:
        again = matching_pursuit(matrix, target, 40, ridge=0.1, memory_bytes=memory_bytes)
        assert again.indices.tobytes() == first.indices.tobytes()
        assert again.weights.tobytes() == first.weights.tobytes()
        assert again.residuals.tobytes() == first.residuals.tobytes()


def test_atoms_larger_than_memory_are_read_in_blocks_and_seldom():
    atoms = unit(np.random.default_rng(0).standard_normal((12_000, 64))).astype(np.float32)
    served = OnlyRows(atoms)
    matching_pursuit(served, atoms.mean(axis=0, dtype=np.float64), 50, memory_bytes=2 << 20)
    assert served.largest * 64 * 8 <= 2 << 20  # 4,096 of the rows
    assert served.read < 0.9 * 50 * len(atoms)  # the textbook algorithm reads every atom in every step


@pytest.mark.parametrize("kind", ["clustered", "duplicates"])
def test_equals_the_textbook_where_the_rows_lie_elsewhere(kind):
    atoms = LARGE[kind].astype(np.float32)
    target = atoms.mean(axis=0, dtype=np.float64)
    elsewhere = Elsewhere(atoms)
    result = matching_pursuit(elsewhere, target, 60, ridge=0.01)
    here = matching_pursuit(atoms, target, 60, ridge=0.01)
    assert result.indices.tolist() == textbook_pursuit(atoms, target, 60, 0.01)[0]
    assert result.weights.tobytes() == here.weights.tobytes()
    assert elsewhere.passes >= 2
    assert elsewhere.fetched < 12 * len(atoms)  # single rows and shortlists; passes send none


@pytest.mark.parametrize("atoms", [LARGE["clustered"], clustered(200, 32, 1, 0.3)])
def test_progress_adds_up_to_what_is_chosen(atoms):
    told: list[int] = []
    result = matching_pursuit(atoms, atoms.mean(axis=0), 120, advance=told.append)
    assert sum(told) == len(result.indices) == 120
    assert len(told) > 3
    assert min(told) > 0


def test_negative_weights_are_dropped_and_a_dropped_atom_can_return():
    dropped_then_kept = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        atoms, target = rng.standard_normal((30, 6)), rng.standard_normal(6)
        result = assert_same(atoms, target, 6, ridge=0.0, tol=1e-6)
        steps = len(result.residuals[: result.pass_steps[1]]) if len(result.pass_steps) > 1 else len(result.residuals)
        size = int(result.passes[1]) if len(result.passes) > 1 else len(result.indices) - result.filled
        dropped_then_kept += result.drops > 0 and steps > size
    assert dropped_then_kept > 10


def test_restarts_fill_the_budget_with_atoms_not_chosen_before():
    atoms = clustered(200, 32, 1, 0.3)
    result = assert_same(atoms, atoms.mean(axis=0), 120)
    assert len(result.passes) > 1
    assert len(set(result.indices.tolist())) == 120
    assert result.passes[0] == 0
    assert (np.diff(result.passes) > 0).all()


def test_without_restart_one_pass_is_made_and_nothing_filled():
    atoms = clustered(200, 32, 1, 0.3)
    whole = matching_pursuit(atoms, atoms.mean(axis=0), 120)
    first = matching_pursuit(atoms, atoms.mean(axis=0), 120, restart=False)
    assert first.indices.tolist() == whole.indices[: whole.passes[1]].tolist()
    assert first.filled == 0


def test_of_equal_atoms_the_lowest_index_is_chosen():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((1, 37))
    atoms = np.concatenate([rng.standard_normal((50, 37)) * 0.01, np.repeat(one, 300, axis=0)])
    result = matching_pursuit(atoms, one[0], 3)
    assert result.indices.tolist() == [50, 51, 52]


def test_the_first_atom_is_solved_without_ridge_unless_asked():
    atoms, target = np.array([[2.0, 0.0]]), np.array([1.0, 0.0])
    assert matching_pursuit(atoms, target, 1).weights[0] == pytest.approx(0.5)
    assert matching_pursuit(atoms, target, 1, ridge_first=True).weights[0] == pytest.approx(2 / 5)


def test_a_pass_that_chooses_nothing_ends_the_restarts_and_the_rest_is_filled():
    atoms = -np.eye(4) * np.array([3.0, 1.0, 2.0, 1.0])[:, None]
    result = matching_pursuit(atoms, np.ones(4), 4)
    assert result.indices.tolist() == [1, 3, 2, 0]  # least negative first, equal ones by index
    assert result.filled == 4
    assert not result.weights.any()
    assert len(result.passes) == 0


def test_zero_target_zero_atoms_and_small_pools():
    atoms = np.random.default_rng(0).standard_normal((5, 3))
    assert matching_pursuit(atoms, np.zeros(3), 3).indices.tolist() == [0, 1, 2]
    assert matching_pursuit(np.zeros((5, 3)), np.ones(3), 3).indices.tolist() == [0, 1, 2]
    assert sorted(matching_pursuit(atoms, np.ones(3), 99).indices.tolist()) == [0, 1, 2, 3, 4]
    assert matching_pursuit(np.zeros((0, 3)), np.ones(3), 3).indices.tolist() == []
    assert matching_pursuit(atoms, np.ones(3), 0).indices.tolist() == []


def test_budget_above_the_rank_without_ridge():
    atoms = np.random.default_rng(0).standard_normal((40, 30)) @ np.diag([1.0] * 4 + [0.0] * 26)
    target = np.random.default_rng(1).standard_normal(30)  # mostly outside of the span: tol never ends a pass
    result = assert_same(atoms, target, 20, ridge=0.0, positive=False)
    assert np.diff(result.passes).max() <= 4


def test_residuals_are_those_of_the_weights():
    atoms = clustered(300, 20, 3, 0.5)
    target = atoms.mean(axis=0)
    result = matching_pursuit(atoms, target, 10, ridge=0.0, restart=False)
    left = target - result.weights @ atoms[result.indices]
    assert result.residuals[-1] == pytest.approx(np.linalg.norm(left) / np.linalg.norm(target), rel=1e-9)
    assert (np.diff(result.residuals) <= 1e-12).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atoms": np.array([[1.0, np.nan]])}, "row 0 holds NaN"),
        ({"atoms": np.array([[1.0, 2.0], [np.inf, 0.0]])}, "row 1 holds NaN"),
        ({"target": np.array([np.nan, 1.0])}, "target holds NaN"),
        ({"target": np.ones(3)}, "atoms must be"),
        ({"atoms": np.ones(2)}, "atoms must be"),
        ({"budget": -1}, "budget must be"),
        ({"ridge": -1.0}, "ridge must be"),
        ({"tol": float("nan")}, "tol must be"),
    ],
)
def test_wrong_input_is_refused(change, message):
    given = {"atoms": np.ones((2, 2)), "target": np.ones(2), "budget": 1, **change}
    with pytest.raises(ValueError, match=message):
        matching_pursuit(**given)


def test_growing_cholesky_follows_every_append_and_delete():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((25, 30))
    gram = rows @ rows.T + 0.1 * np.eye(25)
    factor, held = GrowingCholesky(), []
    for _ in range(300):
        if held and (len(held) == 25 or rng.random() < 0.45):
            position = int(rng.integers(len(held)))
            factor.delete(position)
            del held[position]
        else:
            new = int(rng.choice(np.setdiff1d(np.arange(25), held)))
            factor.append(*factor.complement(gram[held, new], gram[new, new]))
            held.append(new)
        right = rng.standard_normal(len(held))
        np.testing.assert_allclose(gram[np.ix_(held, held)] @ factor.solve(right), right, atol=1e-9)


def test_ranking_puts_equal_scores_in_order_of_their_index():
    scores = np.array([1.0, 3.0, 1.0 + 1e-15, 3.0 - 1e-15, 2.0])
    assert rank_descending(scores, 1e-12).tolist() == [1, 3, 4, 0, 2]
