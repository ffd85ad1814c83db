"""Gradients and features on a second device are those of the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend import NAME

from pursuit.gradients import example_gradients, make_projection, trainable_parameters
from pursuit.gradients.embeddings import embed
from pursuit.gradients.tensorsketch import make_tensor_sketch
from pursuit.models.trainable import prepare_trainable
from test_extract import EXACT, LENGTHS, Rows, TwoCheckpoints, features_of, run
from test_gradients import batch_of, one_at_a_time, random_examples, relative_error, with_lora
from tiny import CONFIGS, tiny_model

SPARSE = replace(EXACT, projection="sparse", dimension=256, batch_tokens=200)


def slowly(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("whole", [False, True], ids=["LoRA", "all weights"])
def test_gradients_equal_autograd_on_the_cpu(kind, whole):
    model = prepare_trainable(tiny_model(kind), weights=["*"]) if whole else with_lora(kind)
    rows = random_examples([5, 17, 2, 9])
    expected = one_at_a_time(model, rows)
    batch = {name: tensor.to(NAME) for name, tensor in batch_of(rows).items()}
    assert relative_error(example_gradients(model.to(NAME), batch).cpu(), expected) <= 1e-4


@pytest.mark.parametrize("method", ["sparse", "rademacher"])
def test_projection_is_that_of_the_cpu(method):
    matrix = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    rows = []
    for device in ("cpu", NAME):
        projection = make_projection(method, 5000, 300, seed=4)
        accumulator = projection.start(3, torch.device(device))
        projection.add(accumulator, 0, matrix[:, :1234].to(device))
        projection.add(accumulator, 1234, matrix[:, 1234:].to(device))
        rows.append(projection.finish(accumulator).cpu())
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-4)


def features_on_both(model, recipe, place):
    """Of the CPU, and twice of the second device."""
    checkpoints = TwoCheckpoints(model)
    found = [features_of(run(model, checkpoints, place / "cpu", recipe))]
    model.to(NAME)
    return [*found, *(features_of(run(model, checkpoints, place / name, recipe)) for name in ("a", "b"))]


@pytest.mark.parametrize(
    ("kind", "momentum"),
    [("sgd", False), ("adam", True), slowly("sign", False), slowly("less", True), slowly("adam", False)],
)
def test_features_are_those_of_the_cpu_and_the_same_bits_again(tmp_path, kind, momentum):
    recipe = replace(
        EXACT, projection="sparse", preconditioner=kind, momentum=momentum, dimension=256, batch_tokens=200
    )
    on_cpu, there, again = features_on_both(with_lora("llama"), recipe, tmp_path)
    for number in range(2):
        rows = there.checkpoint(number)[:]
        cosine = (rows * on_cpu.checkpoint(number)[:]).sum(axis=1)
        if kind == "sign":  # the row of two tokens has a nearly zero gradient, whose signs are anything
            cosine = cosine[np.asarray(LENGTHS) > 2]
        assert cosine.min() > 0.999
        np.testing.assert_array_equal(rows, again.checkpoint(number)[:])


@pytest.mark.parametrize(
    ("projection", "kind"),
    [
        ("tensorsketch", "adam"),
        ("none", "adam"),
        slowly("tensorsketch", "sgd"),
        slowly("factored", "adam"),
        slowly("factored", "sgd"),
    ],
)
def test_whole_weights_projected_in_each_way(tmp_path, projection, kind):
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    prepare_trainable(model, weights=["*layers*proj*", "*embed*", "*norm*"])
    recipe = replace(EXACT, projection=projection, preconditioner=kind, dimension=128, batch_tokens=200)
    on_cpu, there, again = features_on_both(model, recipe, tmp_path)
    np.testing.assert_allclose(there.checkpoint(1)[:], on_cpu.checkpoint(1)[:], atol=2e-3)
    np.testing.assert_allclose(there.losses, on_cpu.losses, rtol=1e-4)
    np.testing.assert_array_equal(there.checkpoint(1)[:], again.checkpoint(1)[:])


def test_a_sketch_is_that_of_the_cpu_and_the_same_bits_again():
    shapes = {"w": (300, 700)}
    rows, columns = torch.randn(2, 9, 300), torch.randn(2, 9, 700)
    found = []
    for device in ("cpu", NAME, NAME):
        sketch = make_tensor_sketch(shapes, 64, 0, device, worth=0)
        sides = sketch.narrow("w", 0, rows.to(device)), sketch.narrow("w", 1, columns.to(device))
        found.append(sketch.product("w", *sides).cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_embeddings_are_those_of_the_cpu(tmp_path, kind):
    found = [
        features_of(embed(tiny_model(kind).to(device), Rows(LENGTHS), tmp_path / device, provenance={}))
        for device in ("cpu", NAME)
    ]
    np.testing.assert_allclose(found[0].checkpoint(0)[:], found[1].checkpoint(0)[:], atol=2e-3)
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-4)


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    """Without this the other tests would show nothing."""
    there, here = torch.ones(3, device=NAME), torch.ones(3)
    for mistake in (
        lambda: there + here, lambda: here.add_(there), lambda: torch.cat([there, here]), lambda: there.numpy(),
        lambda: torch.where(there > 0, here, there), lambda: torch.zeros(2, 3) @ there,
        lambda: here[there.long()], lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, TypeError)):
            mistake()
    assert (there * 2 + torch.tensor(1.0)).tolist() == [3, 3, 3]
    assert there[torch.tensor([0, 2])].cpu().tolist() == [1, 1]
    model = with_lora("llama").to(NAME)
    assert {p.device.type for p in trainable_parameters(model).values()} == {NAME}
