"""GTP follows the trajectory; plain matching pursuit and k-center beside it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import SelectionError, SettingsError
from pursuit.selectors import Gtp, KCenter, Omp, comparison
from pursuit.solvers import compressive_pursuit, farthest_point, matching_pursuit
from pursuit.solvers.partitions import partitioned_pursuit
from pursuit.store.features import Features


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
    np.testing.assert_allclose(selection.weights, expected.weights, rtol=1e-6, atol=1e-12)  # where the fit is exact
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
    examples = selection.diagnostics["near_duplicate_examples"]
    assert examples["gtp"] == []
    assert len(examples["most similar"]) == min(20, pairs["most similar"])
    unit = side_by_side(pool) / np.sqrt(3)
    cosines = [cosine for *_, cosine in examples["most similar"]]
    assert cosines == sorted(cosines, reverse=True)
    for a, b, cosine in examples["most similar"]:
        assert copies[a] == copies[b]
        assert a != b
        assert cosine == pytest.approx(unit[a] @ unit[b], abs=1e-6)
        assert not {a, b} <= set(selection.indices.tolist())


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


def test_with_many_rows_the_most_similar_ones_are_still_compared(monkeypatch):
    features, _ = planted(n=900, d=60)
    exact = Gtp().select(features, 150).diagnostics
    monkeypatch.setattr(comparison, "EXACT", 100)
    monkeypatch.setattr(comparison, "PAIRED", 40)
    fitted = Gtp().select(features, 150).diagnostics
    name = "the same number of most similar rows"
    assert exact["residuals"][name][0] <= fitted["residuals"][name][0] <= 1.01 * exact["residuals"][name][0]
    assert (exact["near_duplicates_among"], fitted["near_duplicates_among"]) == (150, 40)
    monkeypatch.setattr(comparison, "FITTED", 120)
    skipped = Gtp().select(features, 150).diagnostics
    assert list(skipped["residuals"]) == ["gtp"]
    assert skipped["not_compared"] == ["gtp: more than 120 rows are not fitted for comparison"]


@pytest.mark.parametrize("subspace", [5, 40])
@pytest.mark.filterwarnings("ignore:.*as closely as any number can")
def test_raw_rows_are_as_long_as_the_gradients_were(subspace):
    rng = np.random.default_rng(3)
    units, _ = planted(n=300)
    rows = np.stack([units.checkpoint(t) for t in range(3)], axis=1) * rng.gamma(2, 1, (300, 3, 1))
    pool, lengths_kept = Features.from_array(rows), Features.from_array(rows, normalise=False)
    aims = rows[:9] + 0.05 * rng.standard_normal((9, 3, 40))
    options = {"subspace": subspace, "sample": 100}
    for goal, goal_kept in ((None, None), (Features.from_array(aims), Features.from_array(aims, normalise=False))):
        raw = Gtp(rows="raw", **options).select(pool, 10, target=goal)
        expected = Gtp(**options).select(lengths_kept, 10, target=goal_kept)
        assert raw.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(raw.weights, expected.weights, rtol=1e-3)
        assert raw.indices.tolist() != Gtp(**options).select(pool, 10, target=goal).indices.tolist()
        again = Gtp(rows="raw", **options).select(lengths_kept, 10, target=goal_kept)
        assert again.indices.tolist() == raw.indices.tolist()


@pytest.mark.parametrize("rows", ["unit", "raw"])
@pytest.mark.parametrize("length", [1.0, 1e-3])
def test_a_short_target_counts_as_much_in_the_subspace_as_the_pool(rows, length):
    rng = np.random.default_rng(0)
    pool, target = rng.standard_normal((500, 64)), 0.1 * rng.standard_normal((20, 64))
    pool[:, 32:] *= 0.05
    target[:, 40] += 1
    chosen = Gtp(subspace=16, rows=rows).select(
        Features.from_array(pool), 10, target=Features.from_array(length * target), seed=0
    )
    assert chosen.diagnostics["goal_kept_by_subspaces"][0] > 0.95


def test_raw_rows_need_norms_that_are_known():
    features, _ = planted(n=50)
    matrices = [features.checkpoint(t) for t in range(3)]
    unknown = Features(matrices, features.weights, features.rows, features.gradient_norms, features.losses)
    with pytest.raises(SelectionError, match="the norms of the projected rows; that of row 0 is not known"):
        Omp(rows="raw").select(unknown, 5)


def test_partitions_are_pursued_first_and_then_what_they_chose():
    features, labels = planted(n=900, d=60)
    for goal in (None, part(features, np.flatnonzero(labels == 2)[:7])):
        rows = side_by_side(features)
        mean = (rows if goal is None else side_by_side(goal)).mean(axis=0)
        selection = Gtp(partitions=3).select(features, 30, target=goal)
        expected = partitioned_pursuit(rows, mean, 30, 3)
        assert selection.indices.tolist() == expected.indices.tolist()
        exact = Gtp().select(features, 30, target=goal).diagnostics["residual"]
        similar = selection.diagnostics["residuals"]["the same number of most similar rows"][0]
        assert exact <= selection.diagnostics["residual"] < (exact + similar) / 2
    with pytest.raises(SettingsError, match="partitions=0"):
        Gtp(partitions=0)


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**31), st.data())
def test_odd_shapes_end_with_the_budget_used_or_with_a_reason(n, checkpoints, d, target_rows, seed, data):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (n, checkpoints, d)).astype(float)  # many zeros and duplicates
    budget = data.draw(st.integers(1, n))
    names = data.draw(st.lists(st.sampled_from("ab"), min_size=target_rows, max_size=target_rows))
    target = rng.integers(-1, 2, (target_rows, checkpoints, d)).astype(float)
    target = Features.from_array(target, sources=names) if target_rows else None
    selector = data.draw(st.sampled_from([Gtp, Omp]))(subspace=data.draw(st.integers(1, 5)))
    if selector.name == "gtp":
        selector = Gtp(subspace=selector.subspace, partitions=data.draw(st.integers(1, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            selection = selector.select(Features.from_array(rows), budget, target=target)
        except SelectionError as error:
            assert "is zero" in str(error)  # noqa: PT017
            return
    assert len(selection) == budget
    assert np.isfinite(selection.weights).all()
    assert (selection.weights >= 0).all()
    json.dumps(selection.diagnostics)


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
    from pursuit.cli.commands import select_from_arrays

    chosen = {}
    for name, target in (("with", tmp_path / "target.npy"), ("without", None)):
        out = tmp_path / f"{name}.jsonl"
        select_from_arrays("gtp", "6", tmp_path / "pool.npy", target, {}, out, {})
        chosen[name] = [json.loads(line)["index"] for line in out.read_text().splitlines()]
        assert "the same number of most similar rows" in (tmp_path / f"{name}.report.html").read_text()
    assert (labels[chosen["with"]] == 2).all()
    assert len(set(labels[chosen["without"]])) > 1
