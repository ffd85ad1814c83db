"""The baselines choose what their formulas say: longest, loss, perplexity, gradnorm, craig, d2."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

import pursuit.solvers.neighbours as neighbours_module
from pursuit import Run
from pursuit.errors import SelectionError
from pursuit.selectors import D2, Craig, GradNorm, Longest, Loss, Perplexity
from pursuit.solvers.facility_location import facility_location
from pursuit.solvers.neighbours import first_of_equal, nearest_neighbours, unit_sketch
from pursuit.store.features import Features
from tiny import tiny_model, tiny_tokenizer


def known(losses=None, norms=None, lengths=None, weights=(1.0,)) -> Features:
    """Features of which only losses (T, N), norms or lengths matter."""
    given_values = next(np.atleast_2d(values) for values in (losses, norms, lengths) if values is not None)
    shape = (len(weights), given_values.shape[1])
    rows = {"source": ["pool"] * shape[1]} | ({} if lengths is None else {"response_length": lengths})
    full = [np.full(shape, np.nan) if v is None else np.broadcast_to(np.float32(v), shape) for v in (norms, losses)]
    checkpoints = [np.ones((shape[1], 2), np.float32)] * shape[0]
    return Features(checkpoints, np.array(weights), pa.table(rows), *full)


def test_longest_takes_the_longest_responses_and_of_equal_ones_the_first():
    selection = Longest().select(known(lengths=[3, 9, 1, 9, 5]), 4)
    assert selection.indices.tolist() == [1, 3, 4, 0]
    assert selection.scores.tolist() == [9, 9, 5, 3]
    assert selection.diagnostics["share_of_response_tokens"] == pytest.approx(26 / 27)


def test_loss_takes_a_band_of_the_last_or_the_average_loss():
    losses = [[9.0, 0.0, 3.0, 4.0, 1.0], [1.0, 2.0, 3.0, 4.0, 3.0]]
    features = known(losses=losses, weights=(0.75, 0.25))
    assert Loss(at="last").select(features, 3).indices.tolist() == [3, 2, 4]
    assert Loss(at="last", band="low").select(features, 2).indices.tolist() == [0, 1]
    assert Loss(at="last", band="middle").select(features, 3).indices.tolist() == [2, 4, 1]  # ranks 1, 2, 3.5, 5, 3.5
    average = Loss(at="average").select(features, 5)  # 7, 0.5, 3, 4, 1.5
    assert average.indices.tolist() == [0, 3, 2, 4, 1]
    np.testing.assert_allclose(average.scores, [7, 4, 3, 1.5, 0.5])


def test_perplexity_begins_with_the_middle_and_reports_the_exponential():
    features = known(losses=[[0.0, 1.0, 2.0, 3.0, 8.0]])
    selection = Perplexity().select(features, 3)
    assert selection.indices.tolist() == [2, 1, 3]
    np.testing.assert_allclose(selection.scores, np.exp([2.0, 1.0, 3.0]))


@given(values=st.lists(st.integers(0, 6), min_size=1, max_size=30), band=st.sampled_from(["high", "middle", "low"]))
def test_bands_are_nested_and_the_same_for_loss_and_perplexity_and_ties_go_to_the_lowest_index(values, band):
    features = known(losses=[[float(value) for value in values]])
    whole = Loss(band=band).select(features, len(values)).indices.tolist()
    for budget in {1, (len(values) + 1) // 2}:
        assert Loss(band=band).select(features, budget).indices.tolist() == whole[:budget]
    assert Perplexity(band=band).select(features, len(values)).indices.tolist() == whole
    for value in set(values):
        of_it = [row for row in whole if values[row] == value]
        assert of_it == sorted(of_it)


def test_the_middle_leaves_as_many_below_as_above():
    losses = np.random.default_rng(0).random(101)
    chosen = losses[Perplexity().select(known(losses=[losses]), 51).indices]
    assert (losses < chosen.min()).sum() == (losses > chosen.max()).sum() == 25


def test_gradnorm_takes_the_largest_weighted_average():
    features = known(norms=[[1.0, 9.0, 4.0, 4.0], [9.0, 2.0, 4.0, 4.0]], weights=(0.5, 0.5))
    selection = GradNorm().select(features, 4)
    assert selection.indices.tolist() == [1, 0, 2, 3]
    np.testing.assert_allclose(selection.scores, [5.5, 5, 4, 4])
    assert GradNorm(checkpoints="last").select(features, 1).indices.tolist() == [0]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (lambda: Longest().select(Features.from_array(np.eye(3)), 1), "longest: .*no column response_length"),
        (lambda: Loss().select(Features.from_array(np.eye(3)), 1), "loss: .*losses of the rows are not known"),
        (lambda: Perplexity().select(Features.from_array(np.eye(3)), 1), "perplexity: .*losses of the rows are not"),
        (lambda: D2(difficulty="loss").select(Features.from_array(2 * np.eye(3)), 1), "d2: .*losses of the rows"),
        (lambda: Loss().select(known(losses=[[1.0, np.nan, 2.0]]), 1), "the loss of row 1 is not a finite number"),
        (lambda: GradNorm().select(Features.from_array(np.eye(3)), 1), "scaled to unit length before"),
        (lambda: GradNorm().select(known(losses=[[1.0, 2.0]]), 1), "gradient norms of the rows are not known"),
        (lambda: Craig().select(Features.from_array(np.zeros((4, 3))), 2), "craig: the features are all zero"),
        (lambda: D2().select(Features.from_array(np.zeros((4, 3))), 2), "d2: the features are all zero"),
    ],
)
def test_what_a_method_lacks_is_said(select, message):
    with pytest.raises(SelectionError, match=message):
        select()


def textbook_facility_location(similarity: np.ndarray, budget: int) -> tuple[list[int], list[float]]:
    """Greedy, every gain computed anew in every step."""
    chosen, gains, best = [], [], np.zeros(len(similarity))
    for _ in range(budget):
        gain = [
            -1.0 if j in chosen else float(np.maximum(similarity[j] - best, 0).sum()) for j in range(len(similarity))
        ]
        chosen.append(int(np.argmax(gain)))
        gains.append(max(gain))
        best = np.maximum(best, similarity[chosen[-1]])
    return chosen, gains


@given(n=st.integers(1, 40), d=st.integers(1, 4), share=st.floats(0, 1), seed=st.integers(0, 20), sparse=st.booleans())
def test_facility_location_is_the_textbook_greedy(n, d, share, seed, sparse):
    rows = np.random.default_rng(seed).integers(-2, 3, (n, d)).astype(np.float32)  # many ties
    similarity = np.maximum(rows @ rows.T, 0)
    budget = max(1, int(share * n))
    found = facility_location(csr_matrix(similarity) if sparse else similarity, budget)
    chosen, gains = textbook_facility_location(similarity, budget)
    assert found.indices.tolist() == chosen
    assert found.gains.tolist() == gains
    useful = int((found.gains > 0).sum())
    best = similarity[found.indices[:useful]].max(axis=0, initial=0)
    np.testing.assert_array_equal(found.owner >= 0, best > 0)
    for row in np.flatnonzero(best > 0):
        assert similarity[found.indices[found.owner[row]], row] == best[row]


def cosines(features: Features) -> np.ndarray:
    f = np.asarray(features.average()[:], np.float64)
    norms = np.linalg.norm(f, axis=1, keepdims=True)
    f = f / np.where(norms > 0, norms, 1)
    return f @ f.T


def test_facility_location_refuses_what_it_cannot_use():
    good = np.eye(3, dtype=np.float32)
    for similarity, budget, counts, message in (
        (good[:2], 1, None, r"similarity must be \(n, n\)"),
        (good, 1, np.ones(2), r"counts \(n,\)"),
        (good, -1, None, "budget must be a whole number"),
        (-good, 1, None, "similarity holds a negative number"),
        (csr_matrix(np.nan * good), 1, None, "similarity holds a negative number, NaN"),
        (good, 1, np.array([1, np.inf, 1]), "counts holds a negative number, NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            facility_location(similarity, budget, counts=counts)


@pytest.mark.parametrize("settings", [{}, {"dense_rows": 1, "neighbours": 79}])
def test_craig_is_facility_location_over_cosines_and_its_weights_count_who_is_nearest(settings):
    features = Features.from_array(np.random.default_rng(1).standard_normal((80, 2, 6)), weights=[2, 1])
    similarity = np.maximum(np.round(cosines(features) * 2**20) / 2**20, 0)
    selection = Craig(**settings).select(features, 20)
    chosen, gains = textbook_facility_location(similarity, 20)
    assert selection.indices.tolist() == chosen
    np.testing.assert_allclose(selection.scores, gains, rtol=1e-4)
    nearest = similarity[chosen].argmax(axis=0)
    np.testing.assert_array_equal(selection.weights, np.bincount(nearest, minlength=20))
    assert selection.diagnostics["mean_similarity"] == pytest.approx(similarity[chosen].max(axis=0).mean(), rel=1e-4)


def test_craig_takes_one_row_of_each_kind_before_any_duplicate_and_counts_duplicates():
    kinds = np.eye(4)[[3, 0, 1, 0, 1, 1, 2, 1]]
    for settings in ({}, {"dense_rows": 1}):
        selection = Craig(**settings).select(Features.from_array(kinds), 6)
        assert selection.indices.tolist() == [2, 1, 0, 6, 3, 4]  # sizes 4, 2, 1, 1; then duplicates by index
        assert selection.weights.tolist() == [3, 1, 1, 1, 1, 1]
        assert selection.scores.tolist() == [4, 2, 1, 1, 0, 0]
        assert selection.diagnostics["distinct_rows"] == 4


def test_craig_covers_every_planted_group():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 12, 600)
    rows = rng.standard_normal((12, 20))[labels] + 0.1 * rng.standard_normal((600, 20))
    for settings in ({}, {"dense_rows": 10}):
        chosen = Craig(**settings).select(Features.from_array(rows), 12).indices
        assert len(set(labels[chosen])) == 12


def test_a_zero_row_is_similar_to_nothing_and_comes_last():
    rows = np.random.default_rng(0).standard_normal((6, 3))
    rows[2] = 0
    selection = Craig().select(Features.from_array(rows), 6)
    assert selection.indices[-1] == 2
    assert selection.weights.tolist() == [1.0] * 6


def textbook_d2(features: Features, near: np.ndarray, difficulty: np.ndarray, forward, reverse, budget) -> list[int]:
    """D2 Pruning by its formulas, over given neighbours."""
    squares = 2 - 2 * cosines(features)
    x = difficulty.astype(float).copy()
    for i in range(len(x)):
        x[i] += sum(np.exp(-forward * squares[i, j]) * difficulty[j] for j in near[i])
    chosen: list[int] = []
    for _ in range(budget):
        i = int(np.argmax([-np.inf if j in chosen else x[j] for j in range(len(x))]))
        chosen.append(i)
        for j in near[i]:
            if j not in chosen:
                x[j] -= np.exp(-reverse * squares[i, j]) * x[i]
    return chosen


@given(seed=st.integers(0, 10), budget=st.integers(1, 40), reverse=st.sampled_from([0.0, 0.5, 3.0]))
def test_d2_is_its_formulas(seed, budget, reverse):
    features = Features.from_array(np.random.default_rng(seed).standard_normal((40, 5)))
    order = np.argsort(-(cosines(features) - 2 * np.eye(40)), axis=1)[:, :4]
    expected = textbook_d2(features, order, features.gradient_norms[0], 1.0, reverse, budget)
    assert D2(neighbours=4, reverse=reverse).select(features, budget).indices.tolist() == expected


def test_d2_does_not_take_a_near_duplicate_while_others_are_left():
    rows = np.array([[5.0, 0, 0], [5.0, 0.01, 0], [0, 3.0, 0], [0, 3.0, 0.01], [0, 0, 1.0], [0, 0.01, 1.0]])
    chosen = D2(neighbours=1).select(Features.from_array(rows), 3).indices.tolist()
    assert sorted(row // 2 for row in chosen) == [0, 1, 2]


def test_neighbours_are_the_most_similar_rows_without_the_row_itself():
    rows = unit_sketch(np.random.default_rng(0).standard_normal((50, 8)), 8, seed=0)
    found, similar = nearest_neighbours(rows, 5)
    exact = rows.astype(float) @ rows.T.astype(float) - 9 * np.eye(50)
    np.testing.assert_array_equal(found, np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_allclose(similar, -np.sort(-exact, axis=1)[:, :5], atol=1e-6)
    for equal in (np.ones((7, 3), np.float32), np.ones((1, 3), np.float32)):
        found, _ = nearest_neighbours(equal / np.sqrt(np.float32(3)), 3)
        assert found.shape == (len(equal), min(3, len(equal) - 1))
        assert (found != np.arange(len(equal))[:, None]).all()


def test_beyond_the_exact_search_most_neighbours_are_still_found(monkeypatch):
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((60, 16))[rng.integers(0, 60, 3000)] + 0.3 * rng.standard_normal((3000, 16))
    rows = unit_sketch(rows, 16, seed=0)
    exact, _ = nearest_neighbours(rows, 10)
    monkeypatch.setattr(neighbours_module, "EXACT_ROWS", 1000)
    near, _ = nearest_neighbours(rows, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, near, strict=True)]) > 0.95


def test_a_sketch_keeps_cosines_and_equal_rows_equal():
    rows = np.random.default_rng(0).standard_normal((40, 5000))
    rows[7] = 3 * rows[2]
    sketch = unit_sketch(rows, 1024, seed=1)
    exact = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(sketch @ sketch.T - exact @ exact.T).std() < 1.3 / np.sqrt(1024)
    np.testing.assert_array_equal(unit_sketch(rows, 5000, seed=1), unit_sketch(rows, 9000, seed=2))
    first, kind = first_of_equal(np.float32([[1, 2], [0, 1], [1, 2], [0, 1], [3, 3]]))
    assert first.tolist() == [0, 1, 4]
    assert kind.tolist() == [0, 1, 0, 1, 2]


def test_a_run_brings_what_each_of_them_needs(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    words = "the capital of france is paris and of italy it is rome".split()
    lines = [{"prompt": words[i % 12], "response": " ".join(words[: 1 + i % 7])} for i in range(30)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Run(
        tmp_path / "run", model=tmp_path / "model", pool=tmp_path / "pool.jsonl", lora={"rank": 2, "alpha": 4},
        features={"dimension": 32}, warmup={"batch_size": 4, "checkpoint_steps": [1, 2], "learning_rate": 1e-3},
    )  # fmt: skip
    longest = run.select(Longest(), 4).selection.indices.tolist()
    assert not run.folder.warmup.exists()
    assert longest == [6, 13, 20, 27]
    features = run.extract()
    hardest = np.argsort(-features.losses[-1], kind="stable")[:5]
    assert run.select(Loss(at="last"), 5).selection.indices.tolist() == hardest.tolist()
    average = features.weights @ features.gradient_norms.astype(float)
    assert run.select(GradNorm(), 5).selection.indices.tolist() == np.argsort(-average, kind="stable")[:5].tolist()
    for selector in (Perplexity(at="last"), Craig(), D2()):
        assert len(run.select(selector, 5).selection) == 5
