"""Projected before it is formed, a gradient is what it would be if it were formed and then projected."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import SettingsError
from pursuit.gradients import AdamState, Preconditioning, capture, make_projection, trainable_parameters
from pursuit.gradients.capture import batch_gradients
from pursuit.gradients.factors import make_factors, widths
from pursuit.gradients.sketch import reduced
from pursuit.settings import settings_from
from test_extract import EXACT, LENGTHS, Rows, TwoCheckpoints, features_of, run
from test_gradients import batch_of, one_at_a_time, random_examples, with_lora
from test_projection import low_rank_gradients, mean_error, unbiased_error
from tiny import CONFIGS, tiny_model


def shapes_of(model):
    return {name: p.shape for name, p in trainable_parameters(model).items()}


def matrix_of(factors, name, size):
    """What a parameter's flat gradient is multiplied by, written out: a Kronecker product, or the identity."""
    if name not in factors.left:
        return torch.eye(size)
    rows, columns = factors.left[name], factors.right[name]
    if rows is None:
        rows = torch.eye(size // len(columns)) if columns is not None else torch.eye(size)
        columns = torch.eye(1) if columns is None else columns
    elif columns is None:
        columns = torch.eye(size // len(rows))
    return torch.kron(rows, columns)


def plainly(model, rows, factors):
    """Autograd one example at a time, then the written-out matrix of each parameter."""
    gradients, begin, parts = one_at_a_time(model, rows), 0, []
    for name, parameter in trainable_parameters(model).items():
        end = begin + parameter.numel()
        parts.append(gradients[:, begin:end] @ matrix_of(factors, name, parameter.numel()))
        begin = end
    return torch.cat(parts, dim=1)


def captured(model, batch, factors):
    blocks = {}
    names = trainable_parameters(model)
    batch_gradients(model, batch, names, lambda name, block: blocks.update({name: block.flatten(1).clone()}), factors)
    size = len(batch["input_ids"])
    return torch.cat([blocks.get(name, torch.zeros(size, factors.sizes[name])) for name in names], dim=1)


def assert_close(found, expected):
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() <= 1e-5


@pytest.mark.parametrize("dimension", [40, 700])  # narrower than LoRA's rank, and wider
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_equals_autograd_and_a_kronecker_matrix(kind, side, dimension):
    model, rows = with_lora(kind, bias="lora_only" if kind == "gpt2" else "none"), random_examples([5, 17, 2, 9])
    factors = make_factors(shapes_of(model), dimension, seed=3, least=1)
    assert_close(captured(model, batch_of(rows, side), factors), plainly(model, rows, factors))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_all_weights_equal_autograd_and_a_kronecker_matrix(kind, tied):
    """Embeddings, heads tied to them, norms and biases too."""
    model, rows = tiny_model(kind, tie_word_embeddings=tied), random_examples([3, 8, 6])
    factors = make_factors(shapes_of(model), 600, seed=1, least=1)
    assert_close(captured(model, batch_of(rows), factors), plainly(model, rows, factors))


def test_bf16_is_within_its_rounding():
    model, rows = tiny_model("llama"), random_examples([9, 14, 20])
    factors = make_factors(shapes_of(model), 2000, seed=1, least=1)
    expected = plainly(model, rows, factors)
    found = captured(model.to(torch.bfloat16), batch_of(rows), factors)
    assert torch.cosine_similarity(found, expected).min() > 0.99


def test_features_are_the_projected_gradients_whatever_the_batches(tmp_path):
    model = with_lora("llama")
    checkpoints, rows = TwoCheckpoints(model), Rows(LENGTHS)
    recipe = replace(EXACT, projection="factored", preconditioner="sgd", dimension=100)
    found = features_of(run(model, checkpoints, tmp_path / "a", recipe))
    alone = features_of(run(model, checkpoints, tmp_path / "b", replace(recipe, batch_tokens=1, shard_rows=2)))
    factors = make_factors(shapes_of(model), 100, seed=0)
    for number in range(2):
        checkpoints.load_into(model, number)
        examples = [
            (torch.tensor(ids).long(), torch.tensor(np.where(response, ids, -100)).long())
            for ids, response in rows.examples
        ]
        blocks = plainly(model, examples, factors)
        projection = make_projection("factored", blocks.shape[1], 100, seed=0)
        accumulator = projection.start(len(blocks), blocks.device)
        projection.add(accumulator, 0, blocks)
        expected = projection.finish(accumulator)
        expected = expected / expected.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(found.checkpoint(number)[:], expected, atol=2e-5)
        np.testing.assert_allclose(alone.checkpoint(number)[:], expected, atol=2e-5)
        np.testing.assert_allclose(found.gradient_norms[number], blocks.norm(dim=1), rtol=1e-4)


def test_neither_weight_gradients_nor_dense_gradients_nor_inputs_are_formed(monkeypatch):
    """Backward reaches no weight, and no product is larger than the p × q numbers of a weight."""
    model, shapes, seen = tiny_model("llama"), [], []
    factors = make_factors(shapes_of(model), 30 * 16, seed=0, least=1)
    real_losses, real_bmm = capture.example_losses, torch.bmm

    def losses(*arguments, **named):
        found = real_losses(*arguments, **named)
        pending = [found.grad_fn]
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.append(node)
                pending += [parent for parent, _ in node.next_functions]
        return found

    def bmm(*arguments, **named):
        shapes.append(real_bmm(*arguments, **named).shape)
        return real_bmm(*arguments, **named)

    monkeypatch.setattr(capture, "example_losses", losses)
    monkeypatch.setattr(torch, "bmm", bmm)
    rows = batch_of(random_examples([5, 7]))
    batch_gradients(model, rows, trainable_parameters(model), lambda *_: None, factors)
    leaves = [node for node in seen if type(node).__name__ == "AccumulateGrad"]
    assert len(leaves) == 1  # the output of the embedding, where the graph starts
    assert len(shapes) == len(factors.left)
    assert max(math.prod(shape[1:]) for shape in shapes) <= max(factors.sizes[name] for name in factors.left)
    assert all(parameter.grad is None for parameter in model.parameters())


@given(rows=st.integers(1, 500), columns=st.integers(1, 500), numbers=st.integers(1, 3000))
def test_widths_are_enough_and_not_much_more(rows, columns, numbers):
    p, q = widths(rows, columns, numbers)
    assert 1 <= p <= rows
    assert 1 <= q <= columns
    assert p * q >= min(numbers, rows * columns)
    assert (p - 1) * q < numbers or (p, q) == (1, 1)


def test_the_matrices_depend_on_seed_shape_and_name_alone():
    shapes = {"a.weight": (40, 60), "b.weight": (40, 60), "c.bias": (7,)}
    both = make_factors(shapes, 50, seed=5, least=1)
    again = make_factors({"b.weight": (40, 60)}, 25, seed=5, least=1)
    torch.testing.assert_close(both.left["b.weight"], again.left["b.weight"], rtol=0, atol=0)
    torch.testing.assert_close(both.right["b.weight"], again.right["b.weight"], rtol=0, atol=0)
    assert not torch.equal(both.left["a.weight"], both.left["b.weight"])
    other = make_factors(shapes, 50, seed=6, least=1)
    assert not torch.equal(both.right["a.weight"], other.right["a.weight"])
    assert both.sizes == {"a.weight": 25, "b.weight": 25, "c.bias": 7}
    torch.testing.assert_close(both.left["a.weight"].abs(), torch.full((40, 5), 5**-0.5))
    assert make_factors(shapes, 50, seed=5).sizes == {"a.weight": 256, "b.weight": 256, "c.bias": 7}


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("kind", ["adam", "less"])
def test_with_a_second_moment_of_rank_one_it_is_adam(kind, momentum):
    """Of matrices, but for a row's own g² in the second moment; biases are exactly Adam's."""
    model, rows = with_lora("gpt2", bias="lora_only"), random_examples([5, 12])
    generator = torch.Generator().manual_seed(0)
    first, second = {}, {}
    for name, shape in shapes_of(model).items():
        draw = lambda *size: torch.rand(size, generator=generator) + 0.2  # noqa: E731
        root = 1e-3 * (draw(shape[0], 1) * draw(1, shape[1]) if len(shape) == 2 else draw(*shape))
        moment = (root - 1e-8).square() * (1 - 0.999**11) if kind == "adam" else root.square() - 1e-8  # ε taken out
        second[name] = moment / 0.999
        first[name] = torch.randn(shape, generator=generator) * 1e-3
    state = AdamState(first, second, step=10)
    factors = make_factors(shapes_of(model), 400, seed=2, least=1)
    direction = Preconditioning(kind, state, momentum, sketch=factors)
    blocks = {}
    batch_gradients(
        model, batch_of(rows), trainable_parameters(model),
        lambda name, block: blocks.update({name: direction(name, block).flatten(1).clone()}), direction.sketch,
    )  # fmt: skip
    exact, gradients, begin = Preconditioning(kind, state, momentum), one_at_a_time(model, rows), 0
    exact.share2, biases = 0.0, exact.share2
    for name, parameter in trainable_parameters(model).items():
        exact.share2 = 0.0 if parameter.dim() == 2 else biases
        gradient = gradients[:, begin : begin + parameter.numel()].view(-1, *parameter.shape).clone()
        expected = exact(name, gradient).flatten(1) @ matrix_of(factors, name, parameter.numel())
        begin += parameter.numel()
        torch.testing.assert_close(blocks[name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_signs_of_a_gradient_that_is_never_formed_are_refused():
    with pytest.raises(SettingsError, match="never forms"):
        settings_from({"features": {"projection": "factored", "preconditioner": "sign"}})


def test_it_is_unbiased_and_its_error_shrinks_with_the_root_of_the_width():
    """Of inner products of unit rows; dense signs of as many numbers err less, as the docs say."""

    def narrow(width, seed):
        factors = make_factors({"w": (64, 96)}, width * width, seed, least=1)
        return lambda unit: reduced(factors, "w", unit.view(-1, 64, 96)).flatten(1)

    errors = {width: unbiased_error(partial(narrow, width)) for width in (8, 32)}
    assert 1.5 < errors[8] / errors[32] < 2.7
    assert errors[32] > mean_error(low_rank_gradients(), "rademacher", 1024, range(40))
