"""Compressive pursuit: the published loop is its transcription, the refined form is as close as matching pursuit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls as scipy_nnls

from pursuit.solvers import compressive_pursuit, matching_pursuit, partitioned_pursuit
from solver_matrices import PROBLEMS, Elsewhere, matching_pursuit_with_nnls, problem, unit


def distance(atoms: np.ndarray, target: np.ndarray, chosen: np.ndarray) -> float:
    """Relative residual of the best non-negative weights, by scipy."""
    return scipy_nnls(atoms[chosen].T, target, maxiter=10_000)[1] / np.linalg.norm(target)


def textbook_loop(atoms: np.ndarray, target: np.ndarray, k: int, iterations: int) -> tuple[set[int], list[float]]:
    """CoSaMP (Needell and Tropp 2009) with non-negative least squares, as the paper describes it."""
    support, residual, curve = np.zeros(0, int), target, []
    best, best_norm = support, np.linalg.norm(target)
    for _ in range(iterations):
        scores = atoms @ residual
        order = np.argsort(-scores, kind="stable")[: 2 * k]
        merged = np.union1d(order[scores[order] > 1e-12], support).astype(int)
        z, _ = scipy_nnls(atoms[merged].T, target, maxiter=10_000)
        kept = np.argsort(-z, kind="stable")[: min(k, np.count_nonzero(z))]
        before, support = support, np.sort(merged[kept])
        w, norm = scipy_nnls(atoms[support].T, target, maxiter=10_000)
        residual = target - w @ atoms[support]
        curve.append(norm / np.linalg.norm(target))
        ended = norm >= best_norm or set(before) == set(support)
        if norm < best_norm:
            best, best_norm = support[w > 0], norm
        if ended:
            break
    return set(best.tolist()), curve


@pytest.mark.parametrize(("kind", "goal"), PROBLEMS)
def test_refined_it_is_as_close_as_matching_pursuit_and_takes_no_row_twice(kind, goal):
    atoms, target = problem(kind, goal)
    result = compressive_pursuit(atoms, target, 60)
    reference = matching_pursuit_with_nnls(atoms, target, 60)
    joint = result.indices[: result.rank]
    ours = distance(atoms, target, joint)
    assert ours <= 1.02 * distance(atoms, target, np.array(reference))
    assert result.residual == pytest.approx(ours, rel=1e-6)
    fitted = target - result.weights[: result.rank] @ atoms[joint]
    assert np.linalg.norm(fitted) / np.linalg.norm(target) == pytest.approx(ours, rel=1e-6)
    assert len(np.unique(atoms[result.indices], axis=0)) == 60


@pytest.mark.parametrize(("kind", "goal"), [("random", "pool"), ("clustered", "pool"), ("clustered", "target")])
def test_without_refinement_it_is_the_published_loop(kind, goal):
    atoms, target = problem(kind, goal, n=800, d=120)
    result = compressive_pursuit(atoms, target, 20, refine="none")
    support, curve = textbook_loop(atoms, target, 20, 10)
    assert set(result.indices[: result.rank].tolist()) == support
    np.testing.assert_allclose(result.residuals[: len(curve)], curve, rtol=1e-8)
    assert result.residual == pytest.approx(min(curve), rel=1e-8)


def test_the_refinement_is_worth_its_name():
    atoms, target = problem("clustered", "pool")
    refined, published = (compressive_pursuit(atoms, target, 60, refine=refine) for refine in ("swaps", "none"))
    assert refined.residual < 0.8 * published.residual
    assert (np.diff(refined.residuals) <= 0).all()  # no iteration makes it worse


class Served:
    """Atoms served in another memory order, by slices and index arrays only."""

    def __init__(self, atoms: np.ndarray) -> None:
        self.atoms, self.shape = atoms, atoms.shape

    def __getitem__(self, rows):
        return np.asfortranarray(self.atoms[rows])


@pytest.mark.parametrize("refine", ["swaps", "none"])
def test_the_result_does_not_depend_on_memory_or_on_how_atoms_are_served(refine):
    atoms, target = problem("doubled", "pool", n=900, d=100)
    first = compressive_pursuit(atoms.astype(np.float32), target, 130, refine=refine)
    for memory in (1 << 30, 1 << 16, 1):
        again = compressive_pursuit(Served(atoms.astype(np.float32)), target, 130, refine=refine, memory_bytes=memory)
        assert again.indices.tolist() == first.indices.tolist()
        np.testing.assert_array_equal(again.weights, first.weights)
        np.testing.assert_array_equal(again.residuals, first.residuals)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 50), d=st.integers(1, 12), share=st.floats(0, 1.2), seed=st.integers(0, 999),
    kind=st.sampled_from(["plain", "repeated", "zeros", "same"]), refine=st.sampled_from(["swaps", "none"]),
)  # fmt: skip
def test_any_problem_is_answered_with_the_whole_budget_and_every_row_once(n, d, share, seed, kind, refine):
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((n, d)) + rng.choice([0.0, 2.0])
    if kind == "repeated":
        atoms = atoms[rng.integers(0, n, n)]
    if kind == "zeros":
        atoms[rng.random(n) < 0.4] = 0
    if kind == "same":
        atoms[:] = atoms[0]
    k = round(share * n)
    result = compressive_pursuit(atoms, atoms.mean(axis=0), k, refine=refine)
    assert len(result.indices) == len(set(result.indices.tolist())) == min(k, n)
    assert (result.weights >= 0).all()
    assert result.rank <= d
    assert np.count_nonzero(result.weights) == len(result.indices) - result.filled
    assert sum(result.changes) >= len(result.indices) - result.filled
    nonzero = atoms[np.abs(atoms).sum(axis=1) > 0]
    chosen = atoms[result.indices]
    different = len(np.unique(nonzero, axis=0))
    assert len(np.unique(chosen[np.abs(chosen).sum(axis=1) > 0], axis=0)) == min(different, min(k, n))


@pytest.mark.parametrize("refine", ["swaps", "none"])
def test_a_target_equal_to_one_row_is_that_row(refine):
    atoms = unit(np.random.default_rng(3).standard_normal((200, 40)))
    result = compressive_pursuit(atoms, 2.5 * atoms[77], 1, refine=refine)
    assert result.indices.tolist() == [77]
    assert result.weights[0] == pytest.approx(2.5)
    assert result.residual == pytest.approx(0, abs=1e-9)
    more = compressive_pursuit(atoms, atoms[77], 5, refine=refine)
    assert more.indices[0] == 77
    assert len(more.indices) == 5


def test_one_row_is_the_nearest_in_direction():
    atoms, target = problem("clustered", "target", n=500, d=50)
    assert compressive_pursuit(atoms, target, 1).indices.tolist() == [int(np.argmax(atoms @ target))]


def test_identical_rows_come_in_order():
    atoms = np.ones((10, 4))
    assert compressive_pursuit(atoms, np.ones(4), 3).indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_many_atoms_are_as_close_as_those_of_matching_pursuit(kind):
    atoms, target = problem(kind, "pool", n=2500, d=600)
    result = compressive_pursuit(atoms, target, 280)
    assert result.rank == 280
    assert result.residual <= 1.02 * matching_pursuit(atoms, target, 280, ridge=0.0, restart=False).residuals[-1]


@pytest.mark.parametrize("refine", ["swaps", "none"])
@pytest.mark.parametrize("k", [40, 250])
def test_the_bits_are_the_same_where_the_rows_lie_elsewhere_and_parts_are_sent(refine, k):
    atoms, target = problem("doubled", "pool", n=2400, d=80)
    atoms = atoms.astype(np.float32)
    sent: list[int] = []

    def sending(function, items):
        for item in items:
            sent.append(len(item[0]))
            yield pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item)))

    here = compressive_pursuit(atoms, target, k, refine=refine)
    there = compressive_pursuit(Elsewhere(atoms), target, k, refine=refine, map=sending)
    for name in ("indices", "weights", "residuals", "changes", "passes"):
        assert getattr(there, name).tobytes() == getattr(here, name).tobytes()
    assert bool(sent) == (k == 250)


def test_rows_that_lie_elsewhere_are_not_fetched_in_passes():
    atoms, target = problem("clustered", "pool", n=30_000, d=24)
    elsewhere = Elsewhere(atoms)
    compressive_pursuit(elsewhere, target, 12)
    assert elsewhere.fetched < elsewhere.passes * 3000  # what a reading takes up, and those at its margin


@pytest.mark.parametrize(("k", "refine"), [(50, "swaps"), (50, "none"), (200, "swaps"), (1000, "swaps")])
def test_progress_adds_up_to_the_budget(k, refine):
    atoms, target = problem("clustered", "pool", n=1000, d=60)
    told: list[int] = []
    compressive_pursuit(atoms, target, k, refine=refine, advance=told.append)
    assert sum(told) == k
    assert min(told) > 0
    assert len(told) > (3 if refine == "swaps" else 0)


@pytest.mark.parametrize(("kind", "goal"), [("random", "pool"), ("clustered", "pool"), ("clustered", "target")])
def test_in_partitions_it_is_nearly_as_close_and_reads_each_partition_on_its_own(kind, goal):
    atoms, target = problem(kind, goal)
    exact = compressive_pursuit(atoms, target, 60)
    third = np.arange(len(atoms)) % 3
    by_number = partitioned_pursuit(atoms, target, 60, 3)
    by_lists = partitioned_pursuit(atoms, target, 60, [np.flatnonzero(third == number) for number in range(3)])
    assert by_number.indices.tolist() == by_lists.indices.tolist()
    assert len(set(by_number.indices.tolist())) == 60
    rows = by_number.indices[: by_number.rank]
    assert by_number.residual == pytest.approx(distance(atoms, target, rows), rel=1e-6)
    assert by_number.residual <= (1.05 if goal == "target" else 1.35) * exact.residual
    assert partitioned_pursuit(atoms, target, 60, 8, share=180).residual <= 1.15 * exact.residual
    whole = partitioned_pursuit(atoms, target, 60, 1)
    assert whole.residual <= 1.02 * exact.residual


def test_partitions_may_be_small_uneven_and_leave_rows_out():
    atoms, target = problem("clustered", "pool", n=90, d=30)
    parts = [np.arange(5), np.arange(40, 47)]
    result = partitioned_pursuit(atoms, target, 12, parts, advance=lambda count: None)
    assert sorted(result.indices.tolist()) == [*range(5), *range(40, 47)]
    for partitions, message in (
        (0, "partitions must be at least 1"),
        ([], "there is no partition"),
        ([np.arange(5), np.arange(4, 9)], "in two of them"),
        ([np.arange(5)], "12 atoms cannot be chosen from partitions that hold 5"),
    ):
        with pytest.raises(ValueError, match=message):
            partitioned_pursuit(atoms, target, 12, partitions)
    assert len(partitioned_pursuit(atoms, target, 3, 200).indices) == 3


def test_parts_of_a_large_budget_each_follow_the_target():
    atoms, target = problem("clustered", "pool", n=4000, d=40)
    result = compressive_pursuit(atoms, target, 1000)
    assert result.filled == 0
    assert len(set(result.indices.tolist())) == 1000
    ends = [*result.passes[1:].tolist(), 1000]
    for start, stop in zip(result.passes, ends, strict=True):
        if stop - start >= 10:
            fitted = result.weights[start:stop] @ atoms[result.indices[start:stop]]
            assert np.linalg.norm(target - fitted) < 0.3 * np.linalg.norm(target)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_atoms_and_target_does_not_matter(scale):
    atoms, target = problem("clustered", "pool", n=600, d=50)
    first = compressive_pursuit(atoms, target, 20)
    longer = compressive_pursuit(scale * atoms, target, 20)
    assert longer.residual <= 1.02 * first.residual
    np.testing.assert_allclose(compressive_pursuit(atoms, scale * target, 20).residual, first.residual, rtol=1e-6)


def test_near_duplicates_that_float32_cannot_tell_apart_are_told_apart():
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((5, 60)))
    atoms = unit(np.repeat(centres, 80, axis=0) + 1e-5 * rng.standard_normal((400, 60)))
    target = np.arange(1, 6) @ centres + 1e-6 * rng.standard_normal(60)
    result = compressive_pursuit(atoms, target, 5)
    assert sorted(result.indices // 80) == [0, 1, 2, 3, 4]
    result = compressive_pursuit(atoms, target, 30, tol=0)
    assert result.residual < 0.5 * compressive_pursuit(atoms, target, 5).residual


def test_a_budget_beyond_the_dimensions_is_met_by_further_passes():
    rng = np.random.default_rng(1)
    atoms = unit(rng.standard_normal((300, 12)) + 1)
    result = compressive_pursuit(atoms, atoms.mean(axis=0), 100)
    assert result.rank <= 12
    assert result.residual < 1e-5
    assert len(result.passes) >= 8
    ends = [*result.passes[1:].tolist(), 100 - result.filled]
    for start, stop in zip(result.passes, ends, strict=True):
        assert 0 < stop - start <= 12


def test_without_a_positive_correlation_the_nearest_are_filled_in():
    atoms = -np.eye(4)
    result = compressive_pursuit(atoms, np.array([1.0, 3.0, 2.0, 4.0]), 2)
    assert result.indices.tolist() == [0, 2]
    assert result.filled == 2
    assert result.residual == 1.0
    assert compressive_pursuit(atoms, np.zeros(4), 2).indices.tolist() == [0, 1]


def test_wrong_input_is_refused():
    atoms = np.ones((5, 3))
    cases = [
        (lambda: compressive_pursuit(atoms, np.ones(4), 2), r"atoms must be \(n, d\) and target \(d,\)"),
        (lambda: compressive_pursuit(atoms, np.array([1, np.nan, 1]), 2), "target holds NaN"),
        (lambda: compressive_pursuit(atoms, np.ones(3), -1), "budget must be a whole number"),
        (lambda: compressive_pursuit(atoms, np.ones(3), 2, tol=-1), "tol must be"),
        (lambda: compressive_pursuit(atoms, np.ones(3), 2, refine="some"), "refine must be"),
        (lambda: compressive_pursuit(np.array([[1.0], [np.inf]]), np.ones(1), 1), "row 1 holds"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def mapped_kib(path: Path) -> int:
    """How much of a mapped file is in this process' memory."""
    parts = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(part.split("Rss:")[1].split()[0]) for part in parts)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc/self/smaps")
def test_a_mapped_file_does_not_stay_in_memory_and_is_not_changed(tmp_path):
    path = tmp_path / "rows.npy"
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (64_000, 256))
    mapped[:] = np.random.default_rng(0).standard_normal((64_000, 256), dtype=np.float32)
    some = mapped[::1000].copy()
    assert mapped_kib(path) > 60_000
    result = compressive_pursuit(mapped, mapped[:5000].mean(axis=0, dtype=np.float64), 20)
    assert mapped_kib(path) < 30_000
    np.testing.assert_array_equal(mapped[::1000], some)
    assert len(result.indices) == 20
