"""Shards of a feature store: how long they are, and going on in the middle of one."""

import gc
import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit import pace
from pursuit.gradients import extract as module
from pursuit.inspection.predict import padded_tokens, planned_batches
from pursuit.recipes import Recipe
from pursuit.store.features import FeatureStore
from pursuit.store.shard_files import rows_made, unfinished_path
from test_extract import EXACT, LENGTHS, checkpoints, features_of, model, run, shard_bytes  # noqa: F401

ONE_SHARD = replace(EXACT, projection="sparse", shard_rows=20, batch_tokens=20)
ROWS = len(LENGTHS)


@pytest.fixture
def kept_after_each_batch(monkeypatch):
    monkeypatch.setattr(pace, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "SAVING_SHARE", 0)


class Killed(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def killed_after(batches, monkeypatch):
    """Let `batch_features` make so many batches; a list of all rows that it is asked for."""
    real, asked = module.batch_features, []

    def counted(of, encoded, rows, *rest):
        if len(asked) == batches:
            raise Killed
        asked.append(list(rows))
        return real(of, encoded, rows, *rest)

    monkeypatch.setattr(module, "batch_features", counted)
    return asked


@pytest.mark.usefixtures("kept_after_each_batch")
@pytest.mark.parametrize("batches", [1, 3, 5, 11])
def test_a_kill_within_a_shard_loses_no_finished_batch(model, checkpoints, tmp_path, monkeypatch, batches):  # noqa: F811
    run(model, checkpoints, tmp_path / "whole", ONE_SHARD)
    with monkeypatch.context() as patched:
        before = killed_after(batches, patched)
        with pytest.raises(Killed):
            run(model, checkpoints, tmp_path / "killed", ONE_SHARD)
    after = killed_after(sys.maxsize, monkeypatch)
    store = FeatureStore(tmp_path / "killed")
    assert store.rows_left(store.missing()) == 2 * ROWS - sum(map(len, before))
    run(model, checkpoints, tmp_path / "killed", ONE_SHARD)
    assert sorted(row for batch in before + after for row in batch) == sorted([*range(ROWS)] * 2)
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")  # nothing unfinished is left, either


@pytest.mark.usefixtures("kept_after_each_batch")
@pytest.mark.parametrize("harm", ["flip", "cut", "another store's"])
def test_unfinished_rows_that_cannot_be_trusted_are_made_again(model, checkpoints, tmp_path, monkeypatch, harm):  # noqa: F811
    run(model, checkpoints, tmp_path / "whole", ONE_SHARD)
    places = {"mine": ONE_SHARD, "other": replace(ONE_SHARD, seed=1)}
    for place, recipe in places.items():
        with monkeypatch.context() as patched:
            killed_after(4, patched)
            with pytest.raises(Killed):
                run(model, checkpoints, tmp_path / place, recipe)
    mine, other = (unfinished_path(FeatureStore(tmp_path / place).shard_path(0, 0)) for place in places)
    content = bytearray(mine.read_bytes())
    content[-5] ^= 1
    mine.write_bytes({"flip": content, "cut": content[:-7], "another store's": other.read_bytes()}[harm])
    asked = killed_after(sys.maxsize, monkeypatch)
    run(model, checkpoints, tmp_path / "mine", ONE_SHARD)
    assert sorted(row for batch in asked for row in batch) == sorted([*range(ROWS)] * 2)
    assert shard_bytes(tmp_path / "mine") == shard_bytes(tmp_path / "whole")


def test_a_short_shard_is_not_written_twice(model, checkpoints, tmp_path, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patched:
        killed_after(4, patched)
        with pytest.raises(Killed):
            run(model, checkpoints, tmp_path, ONE_SHARD)
    assert shard_bytes(tmp_path) == {}
    assert rows_made(FeatureStore(tmp_path).shard_path(0, 0)) == 0


def test_out_of_memory_and_a_kill_together(model, checkpoints, tmp_path, monkeypatch, kept_after_each_batch):  # noqa: F811
    """Half of a batch that did not fit is made when the kill comes."""
    real = module.batch_features

    def small_machine(calls):
        left = [calls]

        def compute(model, encoded, rows, *rest):
            if len(rows) > 1:
                raise torch.OutOfMemoryError("too big")
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(model, encoded, rows, *rest)

        return compute

    for place, calls in (("killed", 4), ("killed", 1000), ("whole", 1000)):
        with monkeypatch.context() as patched:
            patched.setattr(module, "batch_features", small_machine(calls))
            try:
                run(model, checkpoints, tmp_path / place, ONE_SHARD)
            except Killed:
                assert calls == 4
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")


@pytest.mark.usefixtures("kept_after_each_batch")
def test_batches_are_the_same_after_a_kill_wherever_memory_ran_out(model, checkpoints, tmp_path, monkeypatch):  # noqa: F811
    """Memory suffices for fewer and fewer tokens; every row is made in a batch of the same rows, kill or no kill."""
    real = module.batch_features

    def small_machine(made, calls):
        left = [calls]

        def compute(model, encoded, rows, *rest):
            if len(rows) > 1 and len(rows) * int(encoded.lengths[rows].max()) > (40 if len(made) < 3 else 22):
                raise RuntimeError("CUDA error: out of memory")
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            made.append(list(rows))
            return real(model, encoded, rows, *rest)

        return compute

    recipe, whole = replace(ONE_SHARD, batch_tokens=100), []
    monkeypatch.setattr(module, "batch_features", small_machine(whole, 1000))
    run(model, checkpoints, tmp_path / "whole", recipe)
    for calls in range(1, len(whole) // 2):
        made = []
        for most in (calls, 1000):
            monkeypatch.setattr(module, "batch_features", small_machine(made, most))
            try:
                run(model, checkpoints, tmp_path / str(calls), recipe)
            except Killed:
                assert most == calls
        assert made == whole
        assert shard_bytes(tmp_path / str(calls)) == shard_bytes(tmp_path / "whole")


@given(rows=st.integers(1, 10**8), dimension=st.integers(1, 10**6))
def test_shards_are_long_where_the_pool_is(rows, dimension):
    size = Recipe(dimension=dimension).rows_a_shard(rows)
    assert size.bit_count() == 1
    assert 512 <= size <= 8192
    assert size == 512 or 4 * size * dimension <= 2**28
    assert size <= 2048 or rows / size >= 32
    larger = 2 * size
    assert larger > 8192 or (larger > 2048 and rows / larger < 32) or 4 * larger * dimension > 2**28  # none would do
    assert Recipe(dimension=dimension, projection="none").rows_a_shard(rows) == 512
    assert Recipe(dimension=dimension, shard_rows=7).rows_a_shard(rows) == 7


def test_long_shards_pad_less():
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 40_000).astype(np.int32) + 10
    padded = [
        padded_tokens(lengths, planned_batches(lengths, Recipe(batch_tokens=16384, shard_rows=rows)))
        for rows in (512, None)
    ]
    shares = [1 - lengths.sum() / tokens for tokens in padded]
    assert Recipe().rows_a_shard(len(lengths)) == 2048
    assert shares[1] < 0.75 * shares[0]


def test_what_did_not_fit_is_not_tried_again_in_the_same_shard(model, checkpoints, tmp_path, monkeypatch):  # noqa: F811
    real, refused, most = module.batch_features, [], 60

    def small_machine(model, encoded, rows, *rest):
        tokens = len(rows) * int(encoded.lengths[rows].max())
        if len(rows) > 1 and tokens > most:
            refused.append(tokens)
            raise torch.OutOfMemoryError("too big")
        return real(model, encoded, rows, *rest)

    plain = features_of(run(model, checkpoints, tmp_path / "plain", ONE_SHARD))
    monkeypatch.setattr(module, "batch_features", small_machine)
    found = features_of(run(model, checkpoints, tmp_path / "small", replace(ONE_SHARD, batch_tokens=10**6)))
    np.testing.assert_allclose(found.checkpoint(1)[:], plain.checkpoint(1)[:], atol=2e-5)
    whole = len(refused) // 2  # of two checkpoints
    assert refused[:whole] == refused[whole:] == sorted(set(refused[:whole]), reverse=True)
    assert all(a >= 1.5 * b for a, b in itertools.pairwise(refused[:whole]))


def test_what_stood_before_a_shard_is_not_looked_through_for_garbage(model, checkpoints, tmp_path, monkeypatch):  # noqa: F811
    real, frozen = module.batch_features, []

    def counted(*arguments):
        frozen.append(gc.get_freeze_count())
        return real(*arguments)

    monkeypatch.setattr(module, "batch_features", counted)
    before = gc.get_freeze_count()
    run(model, checkpoints, tmp_path, ONE_SHARD)
    assert min(frozen) > before + 10_000
    assert gc.get_freeze_count() <= before
