"""Runs whose features are kept as int8 or as signs: every method, the same bits after a kill, the predicted size."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import test_extract
from pursuit import Run
from pursuit.errors import RunError, SettingsError
from pursuit.inspection import inspect
from pursuit.selectors import METHODS
from pursuit.store.features import FeatureStore
from test_codecs import CODES, LENGTHS, opened, read
from test_run import SMALL, write_rows
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "pool.jsonl", 60, seed=0)
    write_rows(folder / "target.jsonl", 8, seed=1, sources=["one", "two"])
    return folder


def settings(place: Path, dtype: str, **features: Any) -> dict[str, Any]:
    kept = {**SMALL["features"], "dimension": 61, "dtype": dtype, **features}
    return {**SMALL, "model": str(place / "model"), "pool": [str(place / "pool.jsonl")], "features": kept}


@pytest.mark.parametrize("dtype", CODES)
def test_every_method_works_on_a_run_of_codes(place, tmp_path, dtype):
    run = Run(tmp_path / "run", **settings(place, dtype), target=place / "target.jsonl")
    for name in METHODS:
        result = run.select(name, 6, **({"clusters": 3} if name == "tagcos" else {}))
        assert len(set(result.selection.indices.tolist())) == 6
    shard = load_file(tmp_path / "run" / "features" / "checkpoint-00" / "00000.safetensors")
    kind, width = (np.int8, 61) if dtype == "int8" else (np.uint8, 8)
    assert (shard["features"].dtype, shard["features"].shape) == (kind, (16, width))
    assert (shard["scales"].dtype, shard["scales"].shape) == (np.float32, (16,))
    matrix = opened(FeatureStore(tmp_path / "run" / "features")).checkpoint(1)
    np.testing.assert_allclose(np.linalg.norm(matrix[:], axis=1), 1, atol=1e-5)
    with pytest.raises(RunError, match=rf"features\.dtype: the run has '{dtype}', now 'float16'"):
        Run(tmp_path / "run", features={"dtype": "float16"})


def test_a_dtype_that_is_not_known_is_refused(place, tmp_path):
    with pytest.raises(SettingsError, match=r"features\.dtype.*'int8' or 'bits'"):
        Run(tmp_path / "run", **settings(place, "int4"))


@pytest.mark.parametrize("dtype", CODES)
def test_codes_are_those_of_the_rows_that_floats_would_hold(tmp_path, dtype):
    """The same extraction in float32, coded afterwards; and cut into other jobs, begun twice, with the same bytes."""
    model = test_extract.with_lora("llama")
    checkpoints = test_extract.TwoCheckpoints(model)
    recipe = replace(test_extract.EXACT, dtype=dtype)
    exact = test_extract.run(model, checkpoints, tmp_path / "exact", test_extract.EXACT)
    whole = test_extract.run(model, checkpoints, tmp_path / "whole", recipe)
    for checkpoint in range(2):
        rows = opened(exact).checkpoint(checkpoint)[:]
        np.testing.assert_array_equal(opened(whole).checkpoint(checkpoint)[:], read(rows, dtype))
    for shards in ([2], [0], None):
        cut = test_extract.run(model, checkpoints, tmp_path / "cut", recipe, shards=shards)
        cut.shard_path(1, 0).unlink(missing_ok=True)
    cut = test_extract.run(model, checkpoints, tmp_path / "cut", recipe)
    for unit in [(checkpoint, shard) for checkpoint in range(2) for shard in range(whole.num_shards)]:
        assert cut.shard_path(*unit).read_bytes() == whole.shard_path(*unit).read_bytes()


@pytest.mark.parametrize("dtype", CODES)
def test_predicted_store_is_as_large_as_the_real_one(place, tmp_path, dtype):
    values = settings(place, dtype, dimension=8192, shard_rows=60)
    predicted = inspect(**values, measure=False).prediction
    run = Run(tmp_path / "run", **values)
    run.extract()
    files = (tmp_path / "run" / "features").rglob("*.safetensors")
    assert predicted.store_bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.02)


@pytest.mark.parametrize("dtype", CODES)
def test_killed_in_the_middle_it_ends_with_the_same_bits(tmp_path, dtype):
    model = test_extract.with_lora("llama")
    checkpoints = test_extract.TwoCheckpoints(model)
    recipe = replace(test_extract.EXACT, dtype=dtype, shard_rows=2)
    rows = test_extract.Rows(LENGTHS * 3)

    def extracted(folder: Path) -> FeatureStore:
        return test_extract.run(model, checkpoints, folder, recipe, rows)

    whole = extracted(tmp_path / "whole")
    child = os.fork()
    if child == 0:
        try:
            extracted(tmp_path / "killed")
        finally:
            os._exit(0)  # the tests are the parent's
    sign, deadline = tmp_path / "killed" / "checkpoint-00" / "00004.safetensors", time.monotonic() + 60
    while not sign.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert 0 < len(FeatureStore(tmp_path / "killed").missing()) < 2 * whole.num_shards
    killed = extracted(tmp_path / "killed")
    for unit in [(checkpoint, shard) for checkpoint in range(2) for shard in range(whole.num_shards)]:
        assert killed.shard_path(*unit).read_bytes() == whole.shard_path(*unit).read_bytes()
