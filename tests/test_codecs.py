"""Rows stored as int8 and as single signs: what is written, what is read, and that selections work on them."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import pursuit.store.rows as feature_rows
from pursuit.errors import StoreError
from pursuit.gradients.shards import begin_store
from pursuit.selectors import Less, Tagcos
from pursuit.store.codecs import decode, empty_rows, encode, row_bytes
from pursuit.store.features import Features, FeatureStore
from pursuit.store.shard_files import shard_is_whole, write_shard

CODES = ["int8", "bits"]
LENGTHS = [5, 9, 17, 3, 12, 8, 8, 21, 6, 14, 2]


def unit_rows(count: int, dimension: int, seed: int = 0, zeros: tuple[int, ...] = ()) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[[row for row in zeros if row < count]] = 0
    return rows


def read(rows: np.ndarray, dtype: str) -> np.ndarray:
    """The rows after they were written and read."""
    coded = encode(torch.from_numpy(rows), dtype)
    out = np.full(rows.shape, np.nan, np.float32)
    decode(coded["features"], coded.get("scales"), out)
    return out


def make_store(folder: Path, matrices: list[np.ndarray], dtype: str, shard_rows: int) -> FeatureStore:
    count, dimension = matrices[0].shape
    store = begin_store(
        folder, count, dimension, [1.0] * len(matrices), dtype=dtype, shard_rows=shard_rows, provenance={}
    )
    for checkpoint, matrix in enumerate(matrices):
        for shard in range(store.num_shards):
            mine = store.shard_range(shard)
            ones = {name: torch.ones(len(mine)) for name in ("norms", "gradient_norms", "losses")}
            store.write(checkpoint, shard, {**encode(torch.from_numpy(matrix[mine.start : mine.stop]), dtype), **ones})
    return store


def opened(store: FeatureStore) -> Features:
    return store.features(pa.table({"source": ["a", "b"] * (store.num_rows // 2) + ["a"] * (store.num_rows % 2)}))


shapes = given(count=st.integers(1, 9), dimension=st.integers(1, 40), seed=st.integers(0, 99))


@shapes
@example(count=3, dimension=8, seed=0)
@example(count=3, dimension=9, seed=0)
def test_int8_rows_are_unit_rows_within_half_a_step(count, dimension, seed):
    rows = unit_rows(count, dimension, seed, zeros=(1, 4))
    found = read(rows, "int8")
    assert not found[[row for row in (1, 4) if row < count]].any()
    alive = rows.any(axis=1)
    np.testing.assert_allclose(np.linalg.norm(found[alive], axis=1), 1, atol=1e-6)
    codes = encode(torch.from_numpy(rows), "int8")["features"].numpy()
    assert (np.abs(codes[alive].astype(int)).max(axis=1) == 127).all()  # the whole range, in every row
    steps = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(codes * steps - rows) <= 0.5001 * steps).all()
    np.testing.assert_array_equal(read(-rows, "int8"), -found)


@shapes
@example(count=3, dimension=8, seed=0)
@example(count=3, dimension=9, seed=0)
def test_bits_are_signs_of_unit_norm_with_the_least_squares_multiple_beside(count, dimension, seed):
    rows = unit_rows(count, dimension, seed, zeros=(1, 4))
    coded = encode(torch.from_numpy(rows), "bits")
    assert coded["features"].shape == (count, -(-dimension // 8))
    signs = np.where(rows >= 0, 1.0, -1.0)
    np.testing.assert_array_equal(np.unpackbits(coded["features"].numpy(), axis=1, count=dimension) * 2.0 - 1, signs)
    closest = [np.linalg.lstsq(sign[:, None], row, rcond=None)[0][0] for sign, row in zip(signs, rows, strict=True)]
    np.testing.assert_allclose(coded["scales"], closest, rtol=1e-5, atol=1e-9)
    alive = rows.any(axis=1)
    cosines = np.einsum("nd,nd->n", signs, rows)[alive] / np.sqrt(dimension)
    np.testing.assert_allclose(coded["scales"].numpy()[alive] * np.sqrt(dimension), cosines, rtol=1e-5)
    np.testing.assert_allclose(read(rows, "bits"), signs / np.sqrt(dimension) * alive[:, None], rtol=1e-6)


@pytest.mark.parametrize("dtype", CODES)
def test_a_row_has_the_same_code_alone_as_among_others(dtype, monkeypatch):
    rows = torch.from_numpy(unit_rows(50, 203))
    together = encode(rows, dtype)
    monkeypatch.setattr("pursuit.store.codecs.AT_ONCE", 1000)  # in several blocks
    for row in (0, 13, 49):
        for name, values in encode(rows[row : row + 1], dtype).items():
            assert torch.equal(values[0], together[name][row])
    assert all(torch.equal(values, together[name]) for name, values in encode(rows, dtype).items())


@pytest.mark.parametrize("dtype", CODES)
def test_extreme_rows(dtype):
    """A single coordinate, the smallest numbers there are, and none that a code could stand for."""
    one = np.eye(1, 12, 5, dtype=np.float32)
    assert read(one, "int8").tolist() == one.tolist()
    tiny = np.full((1, 12), -1e-45, np.float32)
    np.testing.assert_allclose(read(tiny, dtype), np.full((1, 12), -(12**-0.5)), rtol=1e-6)
    assert read(np.empty((0, 12), np.float32), dtype).shape == (0, 12)
    for bad in (np.nan, np.inf, -np.inf):
        rows = unit_rows(3, 12)
        rows[2, 7] = bad
        with pytest.raises(StoreError, match=f"row 2 of a batch is not finite and cannot be stored as {dtype}"):
            encode(torch.from_numpy(rows), dtype)


def test_inner_products_of_int8_rows_are_close_and_of_bits_follow_the_arc_sine():
    """E⟨signs, signs⟩ / d = 2/π · arcsin of the cosine, for coordinates that are jointly normal."""
    random = np.random.default_rng(0)
    for cosine in (0.0, 0.4, 0.9):
        first, other = random.standard_normal((2, 200, 4096)).astype(np.float32)
        second = cosine * first + np.sqrt(1 - cosine**2) * other
        pair = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
        exact = np.einsum("nd,nd->n", *pair)
        for dtype, expected, allowed in (("int8", exact, 1e-3), ("bits", 2 / np.pi * np.arcsin(exact), 0.05)):
            found = np.einsum("nd,nd->n", *(read(rows.astype(np.float32), dtype) for rows in pair))
            assert np.abs(found - expected).max() < allowed
        assert abs(found.mean() - 2 / np.pi * np.arcsin(cosine)) < 0.005


@given(
    n=st.integers(1, 20), d=st.integers(1, 19), dtype=st.sampled_from(["float16", "bfloat16", "float32", *CODES]),
    shard_rows=st.integers(1, 7), start=st.integers(-25, 25), stop=st.integers(-25, 25),
    picks=st.lists(st.integers(0, 1000), max_size=9),
)  # fmt: skip
def test_coded_shards_read_like_an_array(n, d, dtype, shard_rows, start, stop, picks):
    rows = unit_rows(n, d, zeros=(2,))
    coded = encode(torch.from_numpy(rows), dtype)
    cut = [{name: values[i : i + shard_rows] for name, values in coded.items()} for i in range(0, n, shard_rows)]
    sharded = feature_rows.Sharded(cut, shard_rows, (n, d))
    whole = read(rows, dtype)
    for matrix in (sharded, pickle.loads(pickle.dumps(sharded))):
        assert matrix.shape == (n, d)
        assert matrix[:].dtype == np.float32
        np.testing.assert_array_equal(matrix[start:stop], whole[start:stop])
        np.testing.assert_array_equal(matrix[::-2], whole[::-2])
        index = np.asarray([pick % n for pick in picks], dtype=np.int64)
        np.testing.assert_array_equal(matrix[index], whole[index])
        np.testing.assert_array_equal(matrix[index - n], whole[index])
        np.testing.assert_array_equal(matrix[np.arange(n) % 3 == 0], whole[::3])


@pytest.mark.parametrize("dtype", CODES)
def test_a_store_of_codes_travels_as_paths_and_reads_the_same(tmp_path, dtype):
    matrices = [unit_rows(10, 21, seed, zeros=(7,)) for seed in (0, 1)]
    features = opened(make_store(tmp_path, matrices, dtype, shard_rows=4))
    assert (features.num_rows, features.dimension, features.num_checkpoints) == (10, 21, 2)
    sent = pickle.dumps(features.checkpoint(1))
    assert len(sent) < 1500
    np.testing.assert_array_equal(pickle.loads(sent)[:], read(matrices[1], dtype))
    average = pickle.loads(pickle.dumps(features.average()))
    expected = 0.5 * (read(matrices[0], dtype) + read(matrices[1], dtype))
    np.testing.assert_allclose(average[np.array([7, 2])], expected[[7, 2]], rtol=1e-6)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("damaged", ["features", "scales"])
def test_a_damaged_code_is_found(tmp_path, dtype, damaged):
    store = make_store(tmp_path, [unit_rows(10, 21)], dtype, shard_rows=4)
    assert store.missing() == []
    path = store.shard_path(0, 1)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    begin = 8 + length + json.loads(content[8 : 8 + length])[damaged]["data_offsets"][0]
    path.write_bytes(content[:begin] + bytes([content[begin] ^ 1]) + content[begin + 1 :])
    assert store.missing() == [(0, 1)]
    with pytest.raises(StoreError, match=r"00001\.safetensors: missing or damaged"):
        opened(store)


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        (torch.float16, "60c1b3d72126f630fddc94c7c3c2e5c24688e158cfad813817ee9c22f6ea8e7f"),
        (torch.bfloat16, "693919c14d9743b55f65f774d30fe633933f8e716ddf511325715415eee3fb69"),
        (torch.float32, "7c0a348fa7976da1aa426473f6192554d53d208603247e7c22f17c18801a9c7b"),
    ],
)
def test_shards_of_floats_are_the_same_bytes_as_before_there_were_codes(tmp_path, dtype, digest):
    tensors = {
        "features": (torch.arange(12).reshape(3, 4) / 8).to(dtype), "norms": torch.tensor([1.0, 2.0, 3.0]),
        "gradient_norms": torch.tensor([4.0, 5.0, 6.0]), "losses": torch.tensor([0.5, 0.25, 0.125]),
    }  # fmt: skip
    write_shard(tmp_path / "shard", tensors, "x")
    assert hashlib.sha256((tmp_path / "shard").read_bytes()).hexdigest() == digest
    assert shard_is_whole(tmp_path / "shard", "x")


def test_a_shard_without_one_of_its_columns_does_not_stand(tmp_path):
    write_shard(tmp_path / "shard", encode(torch.from_numpy(unit_rows(3, 8)), "int8"), "x")
    assert not shard_is_whole(tmp_path / "shard", "x")


@pytest.mark.parametrize("dtype", CODES)
def test_the_example_in_the_documentation_reads_the_rows(tmp_path, monkeypatch, dtype):
    text = (Path(__file__).parent.parent / "docs" / "runs.md").read_text()
    mark = f"# {dtype}\n"
    code = text[text.index(mark) :].split("\n\n")[0].replace("\n    ", "\n")
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 5
    rows = unit_rows(11, 21, zeros=(3,))
    make_store(tmp_path / "runs" / "x" / "features", [rows], dtype, shard_rows=20)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    expected = read(rows, dtype)
    if dtype == "bits":
        expected *= np.abs(rows).mean(axis=1, keepdims=True) * np.sqrt(21)  # the least-squares multiple
    np.testing.assert_allclose(found["rows"], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", *CODES])
def test_bytes_of_a_row_are_those_of_its_tensors(dtype):
    for dimension in (1, 8, 21, 4096):
        tensors = empty_rows(7, dimension, dtype)
        assert sum(tensor.nbytes for tensor in tensors.values()) == 7 * row_bytes(dtype, dimension)


@pytest.mark.parametrize("dtype", CODES)
def test_a_selection_never_decodes_the_whole_store(tmp_path, monkeypatch, dtype):
    store = make_store(tmp_path / "pool", [unit_rows(1500, 512)], dtype, shard_rows=200)
    target = make_store(tmp_path / "target", [unit_rows(4, 512, seed=1)], dtype, shard_rows=200)
    largest = []
    monkeypatch.setattr(feature_rows, "decode", lambda *given: (largest.append(given[2].shape[0]), decode(*given)))
    chosen = Less(memory_bytes=1 << 20).select(opened(store), 20, target=opened(target)).indices
    assert max(largest) <= (1 << 20) // (512 * 8)
    exact = read(unit_rows(1500, 512), dtype).astype(np.float64)
    goals = read(unit_rows(4, 512, seed=1), dtype).astype(np.float64)
    scores = (exact @ np.stack([goals[::2].mean(axis=0), goals[1::2].mean(axis=0)]).T).max(axis=1)
    assert set(chosen.tolist()) == set(np.argsort(-scores, kind="stable")[:20].tolist())


def test_int8_chooses_what_floats_choose(tmp_path):
    random = np.random.default_rng(0)
    rows = random.standard_normal((12, 256))[random.integers(0, 12, 400)] + random.standard_normal((400, 256))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    stores = {dtype: opened(make_store(tmp_path / dtype, [rows], dtype, 100)) for dtype in ("float32", "int8")}
    for selector in (Less(), Tagcos(clusters=12)):
        chosen = [set(selector.select(store, 40, target=stores["float32"]).indices) for store in stores.values()]
        assert len(chosen[0] & chosen[1]) >= 32
