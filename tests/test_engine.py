"""Engines: what they promise, and asking for one that is not there."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from pursuit.engine import LOCAL, engine_for
from pursuit.errors import RunError, SettingsError
from pursuit.files import write_json
from pursuit.store.features import Features, FeatureStore
from pursuit.store.shard_files import COLUMNS, write_shard


def test_this_process_works_in_order_and_tells_of_progress():
    units = []

    def double(item, advance=None):
        if advance:
            advance(item)
        return 2 * item

    assert list(LOCAL.map(double, [3, 1, 2])) == [6, 2, 4]
    assert list(LOCAL.map(double, [3, 1, 2], units.append)) == [6, 2, 4]
    assert units == [3, 1, 2]
    matrix = np.eye(3)
    assert LOCAL.spread(matrix) is matrix
    assert engine_for("local") is LOCAL


def test_an_unknown_engine_is_refused_with_those_there_are():
    with pytest.raises(SettingsError, match="'spark' is not known; use local or ray"):
        engine_for("spark")


def test_without_ray_everything_else_works_and_asking_says_how_to_get_it():
    code = """
import sys
sys.modules["ray"] = None  # as if it were not installed
import numpy as np
from pursuit import Features, Tagcos
from pursuit.engine import engine_for
from pursuit.errors import RunError, SettingsError
import pursuit.run.run, pursuit.cli
pool = np.random.default_rng(0).normal(size=(60, 8))
print(len(Tagcos(clusters=3).select(Features.from_array(pool), 6)))
try:
    engine_for("ray")
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["6", "engine ray needs one more package: pip install ray"]


def test_an_address_where_no_cluster_is():
    pytest.importorskip("ray")
    with pytest.raises(RunError, match=r"no Ray cluster at '127\.0\.0\.1:1': .*refused\. Start one with `ray start"):
        engine_for("ray", address="127.0.0.1:1")


@pytest.fixture
def stored(tmp_path):
    """Features in a store of 3 shards at 2 checkpoints, and the same as an array (10, 2, 5)."""
    array = np.random.default_rng(0).normal(size=(10, 2, 5)).astype(np.float32)
    array /= np.linalg.norm(array, axis=2, keepdims=True)
    write_json(tmp_path / "manifest.json", {
        "num_rows": 10, "weights": [0.25, 0.75], "shard_rows": 4, "provenance_digest": "x", "dimension": 5,
    })  # fmt: skip
    store = FeatureStore(tmp_path)
    for checkpoint in range(2):
        for shard in range(store.num_shards):
            rows = store.shard_range(shard)
            tensors = {name: torch.ones(len(rows)) for name in COLUMNS}
            tensors["features"] = torch.from_numpy(array[rows.start : rows.stop, checkpoint].copy())
            write_shard(store.shard_path(checkpoint, shard), tensors, "x")
    return store.features(pa.table({"source": ["pool"] * 10})), array


def test_stored_rows_travel_as_paths_and_read_the_same(stored):
    features, array = stored
    sent = pickle.dumps(features.checkpoint(1))
    assert len(sent) < 1500
    np.testing.assert_array_equal(pickle.loads(sent)[:], array[:, 1])
    average = pickle.loads(pickle.dumps(features.average()))
    np.testing.assert_array_equal(average[[7, 2]], features.average()[[7, 2]])


def test_rows_that_another_machine_does_not_see_are_named(stored, tmp_path):
    features, _ = stored
    sent = pickle.dumps(features.checkpoint(0))
    (tmp_path / "checkpoint-00" / "00001.safetensors").unlink()
    with pytest.raises(Exception, match=r"00001\.safetensors: cannot be read on .*all machines share"):
        pickle.loads(sent)[:]


def test_features_on_an_engine_are_the_same_features(stored):
    features, _ = stored
    on = features.on(LOCAL)
    assert on.engine is LOCAL
    assert on.rows is features.rows
    np.testing.assert_array_equal(on.average()[:], features.average()[:])
    own = Features.from_array(np.eye(4))
    np.testing.assert_array_equal(own.on(LOCAL).checkpoint(0)[:], np.eye(4))
