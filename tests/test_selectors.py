"""Methods choose what their formulas say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import SelectionError
from pursuit.selectors import METHODS, Less, Random, Stratified, Tagcos, method
from pursuit.solvers import kmeans
from pursuit.store.features import Features
from textbook_pursuit import textbook_pursuit


def planted_features(n: int = 900, groups: int = 6, checkpoints: int = 3, d: int = 24, seed: int = 0):
    """Rows around clear centres, group 0 far larger than the others; each row's group."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < 0.5, 0, rng.integers(1, groups, n))
    centres = rng.standard_normal((groups, checkpoints, d))
    rows = centres[labels] + 0.3 * rng.standard_normal((n, checkpoints, d))
    features = Features.from_array(rows, sources=[f"source {label % 3}" for label in labels], weights=[3, 2, 1])
    return with_losses_and_lengths(features), labels


def with_losses_and_lengths(features: Features) -> Features:
    """The same features, with what only a run knows of its rows."""
    rng = np.random.default_rng(5)
    losses = rng.gamma(2.0, 1.0, (features.num_checkpoints, features.num_rows)).astype(np.float32)
    rows = features.rows.append_column("response_length", pa.array(rng.integers(1, 90, features.num_rows)))
    checkpoints = [features.checkpoint(t) for t in range(features.num_checkpoints)]
    return Features(checkpoints, features.weights, rows, features.gradient_norms, losses)


class Served(Features):
    """The same features, with every matrix served as rows of another type of container."""

    def __init__(self, features: Features) -> None:
        matrices = [Rows(features.checkpoint(t)) for t in range(features.num_checkpoints)]
        super().__init__(matrices, features.weights, features.rows, features.gradient_norms, features.losses)


class Rows:
    def __init__(self, matrix) -> None:
        self.matrix, self.shape = matrix, matrix.shape

    def __getitem__(self, rows):
        return np.asfortranarray(self.matrix[rows])


def test_tagcos_is_its_plain_transcription():
    features, _ = planted_features()
    selection = Tagcos(clusters=8).select(features, 90, seed=4)
    f = sum(w * np.asarray(features.checkpoint(t)[:], np.float64) for t, w in enumerate(features.weights))
    _, assignment = kmeans(features.average(), 8, seed=4, sample=8 * 256)
    sizes = np.bincount(assignment)
    quotas = sizes * 90 / sizes.sum()
    shares = np.floor(quotas).astype(int)
    for cluster in np.argsort(-(quotas - shares), kind="stable")[: 90 - shares.sum()]:
        shares[cluster] += 1
    for cluster, share in enumerate(shares):
        members = np.flatnonzero(assignment == cluster)
        atoms = features.average()[members]  # rows as stored; the centre is their mean in float64
        chosen, weights, _ = textbook_pursuit(atoms, f[members].mean(axis=0), share, ridge=1.0, tol=1e-4)
        mine = selection.clusters == cluster
        in_order = np.argsort(selection.columns["step"][mine])
        assert selection.indices[mine][in_order].tolist() == members[chosen].tolist()
        scaled = np.array(weights) * len(members) / sum(weights)  # a cluster counts as much as it does in the pool
        np.testing.assert_allclose(selection.weights[mine][in_order], scaled, rtol=1e-4, atol=1e-6)


def test_a_weighted_tagcos_subset_stands_for_the_pool():
    """Its weighted sum is nearer to the pool's mean than rows of small clusters, which are few, would let it be."""
    features, labels = planted_features()
    rare = np.concatenate([np.flatnonzero(labels == 0)[:20], np.flatnonzero(labels != 0)])
    features = Features.from_array(np.stack([features.checkpoint(t)[rare] for t in range(3)], axis=1))
    selection = Tagcos(clusters=6).select(features, 60)
    sizes = [cluster["size"] for cluster in selection.diagnostics["clusters"]]
    np.testing.assert_allclose(np.bincount(selection.clusters, selection.weights), sizes)
    mean = features.average()[:].mean(axis=0)
    chosen = features.average()[selection.indices]
    goal, weighted, plain = (v / np.linalg.norm(v) for v in (mean, selection.weights @ chosen, chosen.mean(axis=0)))
    assert np.linalg.norm(weighted - goal) < 1.3 * np.linalg.norm(plain - goal)


def test_tagcos_covers_every_planted_group_in_proportion_and_so_does_the_beginning_of_its_order():
    features, labels = planted_features()
    selection = Tagcos(clusters=12).select(features, 90)
    for count in (30, 90):
        chosen = np.bincount(labels[selection.indices[:count]], minlength=6)
        np.testing.assert_allclose(chosen, np.bincount(labels) * count / 900, atol=2.5)


def test_tagcos_as_published_rounds_down_and_ours_fills_the_budget():
    features, _ = planted_features()
    ours, published = Tagcos(clusters=7).select(features, 100), Tagcos.as_published(clusters=7).select(features, 100)
    sizes = [cluster["size"] for cluster in published.diagnostics["clusters"]]
    assert len(ours) == 100
    assert len(published) == sum(size * 100 // 900 for size in sizes) < 100
    assert method("tagcos-published", clusters=7) == Tagcos.as_published(clusters=7)


def test_tagcos_reports_every_cluster():
    features, _ = planted_features()
    selection = Tagcos(clusters=5).select(features, 60)
    clusters = selection.diagnostics["clusters"]
    assert sum(cluster["size"] for cluster in clusters) == 900
    for cluster in clusters:
        assert cluster["chosen"] == (selection.clusters == cluster["cluster"]).sum()
        assert len(cluster["residuals"]) >= cluster["passes"]
    average = features.average()[selection.indices]
    assert np.corrcoef(selection.scores, np.linalg.norm(average, axis=1))[0, 1] > 0
    assert (selection.weights >= 0).all()


def test_tagcos_lowers_the_number_of_clusters_of_a_small_pool_with_a_warning():
    features, _ = planted_features(n=40)
    with pytest.warns(UserWarning, match="too many for 40 rows"):
        selection = Tagcos().select(features, 10)
    assert len(selection) == 10
    assert "too many" in selection.diagnostics["warnings"][0]


def less_by_loops(features: Features, target: Features) -> np.ndarray:
    """The formula of LESS, one inner product at a time."""
    names = target.rows.column("source").to_pylist()
    scores = np.zeros(features.num_rows)
    for z in range(features.num_rows):
        by_task: dict[str, list[float]] = {}
        for other, name in enumerate(names):
            similarity = sum(
                weight
                * float(np.float64(features.checkpoint(t)[z : z + 1][0]) @ target.checkpoint(t)[other : other + 1][0])
                for t, weight in enumerate(features.weights)
            )
            by_task.setdefault(name, []).append(similarity)
        scores[z] = max(np.mean(values) for values in by_task.values())
    return scores


def test_less_is_its_formula():
    features, _ = planted_features(n=60)
    rng = np.random.default_rng(1)
    target = Features.from_array(rng.standard_normal((7, 3, 24)), sources=["b", "a", "b", "c", "c", "a", "b"])
    expected = less_by_loops(features, target)
    selection = Less().select(features, 20, target=target)
    assert selection.indices.tolist() == np.argsort(-expected, kind="stable")[:20].tolist()
    np.testing.assert_allclose(selection.scores, expected[selection.indices], rtol=1e-6)
    assert [task["subtask"] for task in selection.diagnostics["subtasks"]] == ["b", "a", "c"]
    assert sum(task["chosen"] for task in selection.diagnostics["subtasks"]) == 20


def test_less_takes_the_lower_index_of_duplicates():
    rows = np.random.default_rng(0).standard_normal((1, 16)).repeat(500, axis=0)
    selection = Less().select(Features.from_array(rows), 5, target=Features.from_array(rows[:3]))
    assert selection.indices.tolist() == [0, 1, 2, 3, 4]


def test_less_finds_the_planted_group_that_the_target_is_made_of():
    features, labels = planted_features()
    members = np.flatnonzero(labels == 3)
    target = Features.from_array(np.stack([features.checkpoint(t)[members[:5]] for t in range(3)], axis=1))
    chosen = Less().select(features, len(members) // 2, target=target).indices
    assert (labels[chosen] == 3).all()


def test_random_is_nested_and_stratified_keeps_the_mixture():
    features, _ = planted_features()
    small, large = Random().select(features, 50, seed=1), Random().select(features, 80, seed=1)
    assert small.indices.tolist() == large.indices[:50].tolist()
    sources = np.array(features.rows.column("source").to_pylist())
    chosen = sources[Stratified().select(features, 90, seed=1).indices]
    for name in set(sources):
        assert abs((chosen == name).sum() - 90 * (sources == name).mean()) < 1


def along_a_trajectory(name):
    """The settings with which a method takes features of several checkpoints."""
    return {"at": "last"} if "at" in type(method(name)).model_fields else {}


@given(n=st.integers(1, 60), share=st.floats(0.01, 1), name=st.sampled_from(sorted(METHODS)), seed=st.integers(0, 5))
@pytest.mark.filterwarnings("ignore:.*too many.*")
def test_every_method_chooses_exactly_the_budget(n, share, name, seed):
    rng = np.random.default_rng(n)
    features = Features.from_array(rng.standard_normal((n, 2, 5)), sources=[f"s{i}" for i in rng.integers(0, 4, n)])
    features = with_losses_and_lengths(features)
    target = Features.from_array(rng.standard_normal((3, 2, 5)))
    budget = max(1, round(share * n))
    selection = method(name, **along_a_trajectory(name)).select(features, budget, target=target, seed=seed)
    assert len(selection) == budget
    assert len(set(selection.indices.tolist())) == budget


@pytest.mark.parametrize("name", [*sorted(METHODS), "tagcos-published"])
def test_the_choice_is_the_same_again_and_however_the_features_are_served(name):
    features, _ = planted_features(n=2000)
    target = Features.from_array(np.random.default_rng(2).standard_normal((4, 3, 24)))
    plain = along_a_trajectory(name)
    small = plain | ({"memory_bytes": 1 << 20} if "memory_bytes" in type(method(name)).model_fields else {})
    first = method(name, **plain).select(features, 70, target=target, seed=9)
    for pool, settings in ((features, plain), (Served(features), plain), (Served(features), small)):
        again = method(name, **settings).select(pool, 70, target=target, seed=9)
        assert again.indices.tolist() == first.indices.tolist()
        np.testing.assert_array_equal(again.weights, first.weights)


@pytest.mark.parametrize("name", ["tagcos", "random", "stratified"])
def test_the_seed_decides(name):
    features, _ = planted_features()
    chosen = [method(name).select(features, 50, seed=seed).indices.tolist() for seed in (0, 1)]
    assert chosen[0] != chosen[1]


def broken(features: Features, row: int) -> Features:
    """The features with a NaN in one row, as a damaged store could serve them."""
    matrices = [np.array(features.checkpoint(t)[:]) for t in range(features.num_checkpoints)]
    matrices[0][row, 2] = np.nan
    return Features(matrices, features.weights, features.rows, features.gradient_norms, features.losses)


def test_wrong_input_is_a_selection_error():
    features, _ = planted_features()
    one_checkpoint = Features.from_array(np.ones((3, 24)))
    other_dimension = Features.from_array(np.ones((3, 3, 25)))
    zeros, target = Features.from_array(np.zeros((50, 3, 24))), Features.from_array(np.ones((3, 3, 24)))
    cases = [
        (lambda: Less().select(features, 5), "less needs a target"),
        (
            lambda: Less().select(features, 5, target=one_checkpoint),
            "number of checkpoints of the target's features is 1",
        ),
        (lambda: Less().select(features, 5, target=other_dimension), "dimension of the target's features is 25"),
        (lambda: Less().select(zeros, 5, target=target), "all zero"),
        (lambda: Less().select(features, 5, target=zeros), "all zero"),
        (lambda: Less().select(broken(features, 17), 5, target=target), "row 17"),
        (lambda: Tagcos(clusters=5).select(zeros, 5), "all zero"),
        (lambda: Tagcos(clusters=5).select(broken(features, 17), 5), "row 17"),
        (lambda: Tagcos.as_published(clusters=50).select(features, 3), "are 0"),
        (lambda: Random().select(features, 0), "budget must be a whole number in 1 … 900"),
        (lambda: Random().select(features, 901), "budget must be a whole number in 1 … 900"),
    ]
    for select, message in cases:
        with pytest.raises(SelectionError, match=message):
            select()
