"""k-means and sharing out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from pursuit.solvers import floor_shares, kmeans, largest_remainder
from pursuit.solvers.clusters import _nearest
from pursuit.solvers.rows import RowView


def planted(n: int, d: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, groups, n)
    return (10 * rng.standard_normal((groups, d))[labels] + rng.standard_normal((n, d))).astype(np.float32), labels


def test_clear_clusters_are_found():
    rows, labels = planted(2000, 16, 8)
    _, assignment = kmeans(rows, 8, seed=0)
    pairs = set(zip(labels.tolist(), assignment.tolist(), strict=True))
    assert len(pairs) == 8


def test_as_good_as_scikit_learn_on_a_sample_and_on_all_rows():
    rows = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    theirs = KMeans(20, n_init=1, random_state=0).fit(rows).inertia_
    for sample in (None, 3000, 1000):
        centres, assignment = kmeans(rows, 20, seed=0, sample=sample)
        assert ((rows - centres[assignment]) ** 2).sum() <= 1.05 * theirs


def test_centres_are_the_exact_means_of_their_members():
    rows, _ = planted(3000, 12, 5)
    centres, assignment = kmeans(rows, 9, seed=3)
    for cluster, centre in enumerate(centres):
        np.testing.assert_allclose(centre, rows[assignment == cluster].mean(axis=0, dtype=np.float64), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), d=st.integers(1, 6), clusters=st.integers(1, 12), kind=st.sampled_from("abc"))
def test_every_cluster_has_a_member(n, d, clusters, kind):
    rng = np.random.default_rng(n * 1000 + d)
    rows = rng.standard_normal((n, d))
    if kind == "b":
        rows = np.ones((n, d))
    elif kind == "c":
        rows = rng.integers(0, 2, (n, d)).astype(float)
    with pytest.warns(UserWarning, match="too many") if n < 4 * clusters and clusters > 1 else Nothing():
        centres, assignment = kmeans(rows, clusters, seed=0)
    assert assignment.shape == (n,)
    assert sorted(set(assignment.tolist())) == list(range(len(centres)))
    assert 1 <= len(centres) <= clusters


class Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_the_same_bits_whatever_serving_and_threads():
    import faiss
    import torch

    rows = np.random.default_rng(0).standard_normal((4000, 24)).astype(np.float32)
    centres, assignment = kmeans(rows, 30, seed=5)
    threads = faiss.omp_get_max_threads()
    try:
        for matrix, count in ((rows, 1), (rows, 2), (RowView(rows, np.arange(4000)), 2)):
            faiss.omp_set_num_threads(count)
            again = kmeans(matrix, 30, seed=5)
            assert again[0].tobytes() == centres.tobytes()
            assert again[1].tobytes() == assignment.tobytes()
    finally:
        faiss.omp_set_num_threads(threads)
        torch.set_num_threads(torch.get_num_threads())


def test_the_nearest_centre_is_found_where_float32_products_lose_it():
    rng = np.random.default_rng(0)
    rows = (300 + rng.standard_normal((2000, 10)) * 0.01).astype(np.float32)
    centres = rows[:7]
    exact = ((rows[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert _nearest(rows, centres).tolist() == exact.tolist()
    assert ((rows @ centres.T - 0.5 * (centres**2).sum(axis=1)).argmax(axis=1) != exact).any()


def test_the_seed_decides():
    rows = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    assert (kmeans(rows, 20, seed=0)[1] == kmeans(rows, 20, seed=0)[1]).all()
    assert (kmeans(rows, 20, seed=0)[1] != kmeans(rows, 20, seed=1)[1]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named_even_outside_of_the_sample(value):
    rows = np.zeros((500, 3), np.float32)
    rows[:] = np.random.default_rng(0).standard_normal((500, 3))
    rows[321, 1] = value
    for sample in (None, 4):
        with pytest.raises(ValueError, match="row 321 holds NaN"):
            kmeans(rows, 2, seed=0, sample=sample)


@settings(max_examples=300, deadline=None)
@given(sizes=st.lists(st.integers(0, 10_000), min_size=1, max_size=50), share=st.floats(0, 1))
def test_largest_remainder_adds_up_stays_within_one_and_within_the_sizes(sizes, share):
    total = round(share * sum(sizes))
    shares = largest_remainder(sizes, total)
    assert shares.sum() == total
    assert (shares <= sizes).all()
    exact = np.array(sizes) * total / max(1, sum(sizes))
    assert (np.abs(shares - exact) < 1).all()
    floors = floor_shares(sizes, total)
    assert (floors == np.floor(exact + 1e-9)).all()
    assert ((shares - floors == 0) | (shares - floors == 1)).all()


def test_equal_remainders_go_to_the_larger_part_then_to_the_first():
    assert largest_remainder([1, 3, 1, 3], 4).tolist() == [0, 2, 0, 2]
    assert largest_remainder([2, 2, 2], 1).tolist() == [1, 0, 0]


@pytest.mark.parametrize(("sizes", "total"), [([1, 2], 4), ([1, 2], -1), ([-1, 2], 1)])
def test_what_cannot_be_shared_out_is_refused(sizes, total):
    with pytest.raises(ValueError, match=r"shared out|at least 0"):
        largest_remainder(sizes, total)
