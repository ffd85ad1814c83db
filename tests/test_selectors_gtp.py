"""GTP follows the trajectory; plain matching pursuit and k-center beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pursuit.commands import select_from_arrays
from pursuit.errors import SelectionError
from pursuit.features import Features
from pursuit.selectors import Gtp, KCenter, Omp
from pursuit.solvers import compressive_pursuit, farthest_point, matching_pursuit


def planted(n: int = 600, groups: int = 5, checkpoints: int = 3, d: int = 40, seed: int = 0):
    """Rows around clear centres that move from checkpoint to checkpoint, and each row's group."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, groups, n)
    rows = rng.standard_normal((groups, checkpoints, d))[labels] + 0.5 * rng.standard_normal((n, checkpoints, d))
    return Features.from_array(rows, weights=[3, 2, 1]), labels


def part(features: Features, rows: np.ndarray) -> Features:
    matrices = [features.checkpoint(t)[rows] for t in range(features.num_checkpoints)]
    return Features.from_array(np.stack(matrices, axis=1))


def side_by_side(features: Features, shares=None) -> np.ndarray:
    shares = np.ones(features.num_checkpoints) if shares is None else shares
    parts = [np.sqrt(b) * np.asarray(features.checkpoint(t)[:], np.float64) for t, b in enumerate(shares)]
    return np.concatenate(parts, axis=1)


@pytest.mark.filterwarnings("ignore:.*as closely as any number can")
@pytest.mark.parametrize("weighting", ["equal", "learning-rate"])
@pytest.mark.parametrize("targeted", [True, False])
def test_gtp_is_the_pursuit_of_the_mean_along_all_checkpoints(weighting, targeted):
    features, labels = planted()
    target = part(features, np.flatnonzero(labels == 2)[:7]) if targeted else None
    shares = np.ones(3) if weighting == "equal" else features.weights * 3
    rows = side_by_side(features, shares)
    goal = (side_by_side(target, shares) if targeted else rows).mean(axis=0)
    selection = Gtp(checkpoints=weighting).select(features, 30, target=target)
    expected = compressive_pursuit(rows, goal, 30)
    assert selection.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(selection.weights, expected.weights, rtol=1e-6)
    np.testing.assert_allclose(selection.scores, rows[selection.indices] @ goal / np.linalg.norm(goal), rtol=1e-6)
    assert selection.diagnostics["goal"] == ("target" if targeted else "pool")


@pytest.mark.filterwarnings("ignore:.*as closely as any number can")
def test_subspaces_are_kept_per_checkpoint_and_say_how_much_of_the_goal_they_hold():
    features, labels = planted()
    target = part(features, np.flatnonzero(labels == 1)[:5])
    for goal in (None, target):
        narrow, whole = (Gtp(subspace=size).select(features, 15, target=goal) for size in (10, 40))
        assert narrow.diagnostics["dimensions"] == [10, 10, 10]
        assert whole.diagnostics["dimensions"] == [40, 40, 40]
        assert all(0.9 < kept <= 1 + 1e-9 for kept in narrow.diagnostics["goal_kept_by_subspaces"])
        rows = side_by_side(features)
        mean = (rows if goal is None else side_by_side(goal)).mean(axis=0)
        for selection in (narrow, whole):
            joint = selection.columns["pass"] == 0
            fit = selection.weights[joint] @ rows[selection.indices[joint]]
            assert np.linalg.norm(mean - fit) < 0.5 * np.linalg.norm(mean)


@pytest.mark.filterwarnings("ignore:.*as closely as any number can")
def test_the_target_decides_and_in_domain_ignores_it():
    features, labels = planted()
    target = part(features, np.flatnonzero(labels == 3)[:5])
    targeted = Gtp().select(features, 20, target=target)
    assert (labels[targeted.indices[targeted.columns["pass"] == 0]] == 3).all()
    assert (labels[targeted.indices] == 3).mean() > 0.7
    plain, ignoring = Gtp().select(features, 20), Gtp(in_domain=True).select(features, 20, target=target)
    assert plain.indices.tolist() == ignoring.indices.tolist()
    assert len(set(labels[plain.indices])) == 5


def test_gtp_takes_no_near_duplicates_where_the_most_similar_rows_are_full_of_them():
    features, _ = planted(n=200)
    copies = np.repeat(np.arange(200), 4)
    rng = np.random.default_rng(1)
    rows = np.stack([features.checkpoint(t)[copies] for t in range(3)], axis=1)
    pool = Features.from_array(rows + 0.005 * rng.standard_normal(rows.shape))
    selection = Gtp().select(pool, 24)
    pairs = selection.diagnostics["near_duplicate_pairs"]
    assert pairs["gtp"] == 0
    assert pairs["most similar"] > 10
    assert len(set(copies[selection.indices])) == 24


def test_both_forms_are_drawn_with_the_most_similar_rows_beside_them():
    features, _ = planted(n=1000)
    refined, published = (Gtp(refine=refine).select(features, 40).diagnostics for refine in ("swaps", "none"))
    for found in (refined, published):
        curves = found["residuals"]
        assert min(curves["gtp"]) == pytest.approx(found["residual"])
        assert found["residual"] < curves["the same number of most similar rows"][0]
        assert len(found["support_changes"]) == len(curves["gtp"])
        assert set(found["seconds"]) == {"reading", "correlations", "candidates", "fitting"}
    assert refined["residual"] <= published["residual"]


def test_a_budget_that_the_goal_cannot_hold_is_explained():
    features = Features.from_array(np.random.default_rng(0).standard_normal((300, 1, 6)) + 1)
    with pytest.warns(UserWarning, match="rows follow the goal as closely as any number can"):
        selection = Gtp().select(features, 50)
    assert selection.diagnostics["rank"] <= 6
    assert "in 6 dimensions" in selection.diagnostics["warnings"][0]
    assert len(selection) == 50
    joint = selection.columns["pass"] == 0
    assert joint.sum() == selection.diagnostics["rank"]


def test_the_choice_does_not_depend_on_where_the_projected_rows_lie():
    features, _ = planted(n=30_000, groups=20)
    first = Gtp(subspace=12, sample=2000).select(features, 25)
    on_disk = Gtp(subspace=12, sample=2000, memory_bytes=1 << 20).select(features, 25)
    assert on_disk.indices.tolist() == first.indices.tolist()
    np.testing.assert_array_equal(on_disk.weights, first.weights)


def test_omp_is_matching_pursuit_without_clusters():
    features, labels = planted()
    target = part(features, np.flatnonzero(labels == 2)[:7])
    rows = side_by_side(features)
    for goal in (None, target):
        mean = (rows if goal is None else side_by_side(goal)).mean(axis=0)
        expected = matching_pursuit(rows, mean, 25, ridge=0.1)
        selection = Omp(ridge=0.1).select(features, 25, target=goal)
        assert selection.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(selection.weights, expected.weights, rtol=1e-6)
        np.testing.assert_allclose(selection.diagnostics["residuals"]["omp"], expected.residuals, rtol=1e-6)


def test_gtp_is_as_close_to_the_goal_as_omp():
    features, _ = planted(n=2000, d=60)
    gtp, omp = Gtp().select(features, 40), Omp().select(features, 40)
    assert gtp.diagnostics["residual"] <= 1.02 * omp.diagnostics["residuals"]["omp"][-1]


def test_kcenter_covers_every_planted_group_first():
    features, labels = planted()
    selection = KCenter().select(features, 60)
    average = np.asarray(features.average()[:], np.float64)
    first = int(np.argmax(average @ average.mean(axis=0)))
    assert selection.indices.tolist() == farthest_point(average, 60, start=first)[0].tolist()
    assert len(set(labels[selection.indices[:8]])) == 5


def test_wrong_input_is_a_selection_error():
    features, _ = planted(n=50)
    zeros = Features.from_array(np.zeros((20, 3, 40)))
    both_ways = Features.from_array(np.concatenate([np.eye(4), -np.eye(4)]))
    for select, message in (
        (lambda: Gtp().select(zeros, 5), "the mean that is to be followed is zero"),
        (lambda: Gtp(subspace=3).select(zeros, 5), "all zero"),
        (lambda: Omp().select(both_ways, 3), "cancel"),
        (lambda: Gtp().select(features, 5, target=zeros), "is zero"),
        (lambda: Gtp().select(features, 5, target=both_ways), "dimension of the target's features is 4"),
    ):
        with pytest.raises(SelectionError, match=message):
            select()


def test_one_row_and_the_whole_pool_can_be_chosen():
    features, _ = planted(n=30)
    target = part(features, np.array([4]))
    assert Gtp().select(features, 1, target=target).indices.tolist() == [4]
    with pytest.warns(UserWarning, match="as closely as any number can"):
        assert sorted(Gtp().select(features, 30, target=target).indices.tolist()) == list(range(30))


def test_from_the_command_a_target_is_followed_where_one_is_given_and_the_report_draws_the_residual(tmp_path):
    features, labels = planted(d=60)
    pool = np.stack([features.checkpoint(t) for t in range(3)], axis=1)
    np.save(tmp_path / "pool.npy", pool)
    np.save(tmp_path / "target.npy", pool[labels == 2][:6])
    chosen = {}
    for name, target in (("with", tmp_path / "target.npy"), ("without", None)):
        out = tmp_path / f"{name}.jsonl"
        select_from_arrays("gtp", "6", tmp_path / "pool.npy", target, {}, out, {})
        chosen[name] = [json.loads(line)["index"] for line in out.read_text().splitlines()]
        assert "the same number of most similar rows" in (tmp_path / f"{name}.report.html").read_text()
    assert (labels[chosen["with"]] == 2).all()
    assert len(set(labels[chosen["without"]])) > 1
