"""Features as selectors see them: read from shards, or given as an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import StoreError
from pursuit.files import write_tensors
from pursuit.store import features as features_module
from pursuit.store.features import Features


@given(
    n=st.integers(1, 20), t=st.integers(1, 3), shard_rows=st.integers(1, 7), start=st.integers(-25, 25),
    stop=st.integers(-25, 25), picks=st.lists(st.integers(0, 1000), max_size=9),
)  # fmt: skip
def test_sharded_rows_read_like_an_array(n, t, shard_rows, start, stop, picks):
    from pursuit.store.rows import Sharded

    array = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    cut = [{"features": torch.from_numpy(array[i : i + shard_rows])} for i in range(0, n, shard_rows)]
    sharded = Sharded(cut, shard_rows, array.shape)
    assert sharded.shape == array.shape
    np.testing.assert_array_equal(sharded[start:stop], array[start:stop])
    np.testing.assert_array_equal(sharded[::2], array[::2])
    rows = np.asarray([pick % n for pick in picks], dtype=np.int64)
    np.testing.assert_array_equal(sharded[rows], array[rows])


def test_few_files_are_mapped_at_once_however_many_there_are(tmp_path, monkeypatch):
    from pursuit.store import rows as store_rows

    monkeypatch.setattr(store_rows, "MAPPED", 3)
    array = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    paths = [tmp_path / f"{first:02}.safetensors" for first in range(0, 20, 2)]
    for path, part in zip(paths, np.split(array, 10), strict=True):
        write_tensors(path, {"features": torch.from_numpy(part)})
    sharded = store_rows.Sharded(store_rows.ShardFiles(paths), 2, array.shape)
    np.testing.assert_array_equal(sharded[:], array)
    np.testing.assert_array_equal(sharded[np.array([19, 0, 7])], array[[19, 0, 7]])
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert len({line.split()[-1] for line in maps.read_text().splitlines() if str(tmp_path) in line}) <= 3


def test_average_is_weighted_over_checkpoints():
    array = np.random.default_rng(1).normal(size=(5, 3, 7))
    features = Features.from_array(array, weights=[1, 2, 5])
    unit = array / np.linalg.norm(array, axis=2, keepdims=True)
    np.testing.assert_allclose(features.average()[:], np.einsum("ntd,t->nd", unit, [1 / 8, 2 / 8, 5 / 8]), rtol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e30, 1e37])
def test_rows_of_any_size_have_their_norm_and_become_unit_rows(scale, monkeypatch):
    monkeypatch.setattr(features_module, "BLOCK", 40)  # several blocks, the last one shorter
    plain = np.random.default_rng(2).normal(size=(33, 9))
    plain[4] = 0
    features = Features.from_array((scale * plain)[:, None])
    lengths = np.linalg.norm((scale * plain).astype(np.float32).astype(np.float64), axis=1)
    np.testing.assert_allclose(features.norms[0], lengths, rtol=1e-3 if scale < 1e-38 else 1e-6)
    unit = np.linalg.norm(np.asarray(features.checkpoint(0)[:], np.float64), axis=1)
    np.testing.assert_allclose(unit, np.arange(33) != 4, rtol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39, 3.4e38])
def test_a_row_that_float32_does_not_hold_is_named(wrong):
    array = np.ones((5, 3))
    array[3] = wrong
    with pytest.raises(StoreError, match=r"row 3 is not finite in float32 \(1 such rows in all\)"):
        Features.from_array(array)


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.zeros(4), np.array([["a"]]), np.array([[1.0, np.nan]])])
def test_features_that_cannot_be_used_are_refused(array):
    with pytest.raises(StoreError):
        Features.from_array(array)
