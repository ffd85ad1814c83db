"""What must hold on a GPU too; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from pursuit import Run
from pursuit.gradients import example_gradients, make_projection
from pursuit.gradients.tensorsketch import make_tensor_sketch
from pursuit.store.features import FeatureStore
from test_extract import EXACT, TwoCheckpoints, features_of, run
from test_gradients import batch_of, one_at_a_time, random_examples, relative_error, with_lora
from test_run import SMALL, write_rows
from tiny import CONFIGS, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_equal_autograd_on_the_cpu(kind):
    model = with_lora(kind)
    rows = random_examples([5, 17, 2, 9])
    expected = one_at_a_time(model, rows)
    batch = {name: tensor.cuda() for name, tensor in batch_of(rows).items()}
    assert relative_error(example_gradients(model.cuda(), batch).cpu(), expected) <= 1e-4


@pytest.mark.parametrize("method", ["sparse", "rademacher"])
def test_projection_is_that_of_the_cpu(method):
    matrix = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    rows = []
    for device in ("cpu", "cuda"):
        projection = make_projection(method, 5000, 300, seed=4)
        accumulator = projection.start(3, torch.device(device))
        projection.add(accumulator, 0, matrix[:, :1234].to(device))
        projection.add(accumulator, 1234, matrix[:, 1234:].to(device))
        rows.append(projection.finish(accumulator).cpu())
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-4)


def test_features_are_those_of_the_cpu_and_the_same_bits_again(tmp_path):
    model = with_lora("llama")
    checkpoints = TwoCheckpoints(model)
    on_cpu = features_of(run(model, checkpoints, tmp_path / "cpu", EXACT)).checkpoint(1)[:]
    model.cuda()
    found = [features_of(run(model, checkpoints, tmp_path / name, EXACT)).checkpoint(1)[:] for name in ("a", "b")]
    np.testing.assert_allclose(found[0], on_cpu, atol=1e-3)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_sketch_is_that_of_the_cpu_and_the_same_bits_again():
    shapes = {"w": (300, 700)}
    rows, columns = torch.randn(2, 9, 300), torch.randn(2, 9, 700)
    found = []
    for device in ("cpu", "cuda", "cuda"):
        sketch = make_tensor_sketch(shapes, 64, 0, device, worth=0)
        sides = sketch.narrow("w", 0, rows.to(device)), sketch.narrow("w", 1, columns.to(device))
        found.append(sketch.product("w", *sides).cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_road(tmp_path, dtype):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "pool.jsonl", 40, seed=0)
    chosen = []
    for name in ("one", "two"):
        made = Run(
            tmp_path / name, model=tmp_path / "model", pool=tmp_path / "pool.jsonl", dtype=dtype, device="cuda", **SMALL
        )
        chosen.append(made.select("tagcos", 6, clusters=3).selection.indices.tolist())
    store = FeatureStore(tmp_path / "one" / "features")
    rows = store.features(pa.table({"source": ["x"] * store.num_rows})).checkpoint(1)[:]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)
    assert chosen[0] == chosen[1]
