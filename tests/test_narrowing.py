"""Rows left out at selection: the same choice as on a pool that never had them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit.engine import engine_for
from pursuit.errors import SelectionError
from pursuit.run.narrowing import kept_rows, narrowed, source_mask, widened
from pursuit.selectors import METHODS, Gtp, Selection, Stratified, method
from pursuit.store.features import Features

pytestmark = pytest.mark.filterwarnings("ignore:.*as closely as any number can")
SOURCES = ["a", "b", "c"]
SETTINGS = {
    "tagcos": {"clusters": 6}, "gtp": {"subspace": 8}, "omp": {"subspace": 8}, "loss": {"at": "last"},
    "perplexity": {"at": "last"},
}  # fmt: skip


def pool(n: int = 240, checkpoints: int = 2, d: int = 12, seed: int = 0) -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((7, checkpoints, d))[rng.integers(0, 7, n)] + 0.4 * rng.standard_normal(
        (n, checkpoints, d)
    )
    return dressed(rows, rng.integers(0, 3, n), seed), rows


def dressed(rows: np.ndarray, sources: np.ndarray, seed: int, only: np.ndarray | None = None) -> Features:
    """Features with everything that a run knows of its rows; with `only`, as if the others had never been there."""
    n, t = rows.shape[:2]
    rng = np.random.default_rng(seed + 100)
    losses = rng.gamma(2, 1, (t, n)).astype(np.float32)
    names = np.array(SOURCES)[sources]
    lengths = rng.integers(1, 50, n)
    only = np.arange(n) if only is None else only
    plain = Features.from_array(rows[only], weights=range(1, t + 1))
    table = pa.table({
        "index": only, "source": pa.array(names[only]).dictionary_encode(), "response_length": lengths[only],
    })  # fmt: skip
    matrices = [plain.checkpoint(number) for number in range(t)]
    return Features(matrices, plain.weights, table, plain.gradient_norms, losses[:, only], plain.norms)


@pytest.mark.parametrize(("name", "raw"), [*((name, False) for name in METHODS), ("gtp", True), ("omp", True)])
def test_every_method_chooses_what_it_chooses_where_the_rows_were_deleted(name, raw):
    features, rows = pool()
    keep = source_mask(features.rows, ["b"])
    sources = np.array([SOURCES.index(name) for name in features.rows["source"].to_pylist()])
    deleted = dressed(rows, sources, 0, only=np.flatnonzero(keep))
    target = Features.from_array(rows[:9] + 0.1, sources=["one", "two", "two"] * 3)
    chosen = method(name, **SETTINGS.get(name, {}), **({"rows": "raw"} if raw else {}))
    expected = chosen.select(deleted, 20, target=target, seed=3)
    found = widened(chosen.select(narrowed(features, keep), 20, target=target, seed=3), keep)
    assert found.indices.tolist() == np.flatnonzero(keep)[expected.indices].tolist()
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert found.num_rows == features.num_rows
    for column in expected.columns:
        np.testing.assert_array_equal(found.columns[column], expected.columns[column])
    assert not set(features.rows["source"].take(pa.array(found.indices)).to_pylist()) & {"b"}


def test_what_is_known_of_rows_is_narrowed_with_them():
    features, rows = pool(40)
    keep = np.arange(40) % 3 != 1
    narrow = narrowed(features, keep)
    assert (narrow.num_rows, narrow.num_checkpoints, narrow.dimension) == (int(keep.sum()), 2, 12)
    assert narrow.rows["index"].to_pylist() == np.flatnonzero(keep).tolist()
    np.testing.assert_array_equal(narrow.losses, features.losses[:, keep])
    np.testing.assert_allclose(narrow.norms, np.linalg.norm(rows[keep].astype(np.float32), axis=2).T, rtol=1e-6)
    np.testing.assert_array_equal(narrow.gradient_norms, features.gradient_norms[:, keep])
    np.testing.assert_array_equal(narrow.average()[3:9], features.average()[np.flatnonzero(keep)[3:9]])
    assert narrowed(features, np.ones(40, bool)) is features


def test_a_source_that_is_left_out_is_not_among_the_strata():
    features, _ = pool(60)
    selection = Stratified().select(narrowed(features, source_mask(features.rows, ["a"])), 10)
    assert {entry["source"] for entry in selection.diagnostics["sources"]} == {"b", "c"}


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any), st.integers(0, 2**32 - 1))
def test_indices_go_there_and_back(keep, seed):
    keep = np.array(keep)
    features = Features.from_array(np.random.default_rng(seed).standard_normal((len(keep), 3)))
    narrow = narrowed(features, keep)
    count = int(keep.sum())
    selection = Selection(np.random.default_rng(seed).permutation(count), np.ones(count), "x", count)
    wide = widened(selection, keep)
    np.testing.assert_array_equal(features.checkpoint(0)[wide.indices], narrow.checkpoint(0)[selection.indices])
    assert wide.num_rows == len(keep)


def test_pairs_of_near_duplicates_are_named_in_the_pools_numbering():
    rows = np.random.default_rng(0).standard_normal((30, 10)) + 1
    rows = np.repeat(rows, 2, axis=0)
    rows[0] = 100 * np.eye(10)[0]  # row 0 goes; the copies are then (2, 3), (4, 5) …
    features, keep = Features.from_array(rows), np.arange(60) >= 2
    selection = widened(Gtp().select(narrowed(features, keep), 12), keep)
    pairs = selection.diagnostics["near_duplicate_examples"]["most similar"]
    assert pairs
    exact = [pair for pair in pairs if pair[2] > 1 - 1e-6]
    assert exact
    assert all(a % 2 == 0 and b == a + 1 for a, b, _ in exact)


def test_a_name_that_is_no_source_is_an_error_that_names_the_nearest():
    rows = pa.table({"source": ["forum", "forum", "books"]})
    with pytest.raises(SelectionError, match=r"'form' is no source.*Did you mean 'forum'\? The sources are forum, b"):
        source_mask(rows, ["form"])
    with pytest.raises(SelectionError, match="without forum, books no row of the pool is left"):
        source_mask(rows, ["forum", "books"])
    assert source_mask(rows, ["forum"]).tolist() == [False, False, True]
    assert source_mask(rows, []).tolist() == [True] * 3


def test_masks_that_do_not_fit_are_refused():
    features, _ = pool(20)
    with pytest.raises(ValueError, match=r"must be \(20,\)"):
        narrowed(features, np.ones(19, bool))
    with pytest.raises(SelectionError, match="none of the 20 rows"):
        narrowed(features, np.zeros(20, bool))
    with pytest.raises(ValueError, match="keep leaves 19 rows; the selection was made from 20"):
        widened(Selection([0], [1.0], "x", 20), np.arange(20) > 0)


def table(rows: list[tuple[str, str, str]]) -> pa.Table:
    """(source, prompt hash, text hash) rows as an encoded pool has them."""
    sources, prompts, texts = zip(*rows, strict=True)
    return pa.table({
        "source": pa.array(sources).dictionary_encode(), "prompt_hash": prompts, "text_hash": texts,
        "path": ["a.jsonl"] * len(rows), "line": range(1, len(rows) + 1),
    })  # fmt: skip


def test_sources_and_leaks_are_left_out_together_and_told():
    rows = table([("s", "p", "t"), ("r", "p", "u"), ("r", "q", "v"), ("r", "x", "w")])
    target = table([("exam", "p", "t"), ("quiz", "q", "other")])
    keep, messages = kept_rows(rows, target, drop_sources=["s"])
    assert keep.tolist() == [False, True, True, True]
    assert messages == [
        "1 of 4 rows of the pool stands in the target set exam (1 of them only with their prompt), e.g. a.jsonl:2; "
        "a score on it would flatter; --drop-leaks leaves them out.",
        "1 of 4 rows of the pool stands in the target set quiz (1 of them only with their prompt), e.g. a.jsonl:3; "
        "a score on it would flatter; --drop-leaks leaves them out.",
    ]
    keep, messages = kept_rows(rows, target, drop_leaks=True)
    assert keep.tolist() == [False, False, False, True]
    assert messages[0].startswith("2 of 4 rows of the pool stand in the target set exam (1 of them only")
    assert messages[0].endswith("e.g. a.jsonl:1; they are left out.")
    assert kept_rows(rows)[0].all()
    with pytest.raises(SelectionError, match="there is no target"):
        kept_rows(rows, drop_leaks=True)
    with pytest.raises(SelectionError, match="every row that could be chosen stands in the target"):
        kept_rows(rows, rows, drop_leaks=True)


@pytest.mark.slow
def test_on_a_ray_cluster_the_choice_is_the_same_bits():
    pytest.importorskip("ray", reason="engine ray needs one more package: pip install ray")
    features, rows = pool(3000)
    keep = source_mask(features.rows, ["b"])
    target = Features.from_array(rows[:9] + 0.1, sources=["one", "two", "two"] * 3)
    engine = engine_for("ray", workers=2)
    try:
        for selector in (Gtp(quotas="one=1,two=2"), Gtp(subspace=8, rows="raw")):
            here = selector.select(narrowed(features, keep), 20, target=target)
            for there in (narrowed(features, keep).on(engine), narrowed(features.on(engine), keep)):
                found = selector.select(there, 20, target=target)
                assert found.indices.tolist() == here.indices.tolist()
                np.testing.assert_array_equal(found.weights, here.weights)
    finally:
        engine.close()
