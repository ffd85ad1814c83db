"""A sketch of the sides is the count sketch of the gradient written out, entry by entry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import SettingsError
from pursuit.gradients import AdamState, Preconditioning, make_projection, trainable_parameters
from pursuit.gradients.capture import batch_gradients
from pursuit.gradients.sketch import reduced
from pursuit.gradients.tensorsketch import MOST, Side, counted, folded, gathered, make_tensor_sketch, order_of
from pursuit.inspection.costs import shape_of
from pursuit.settings import settings_from
from test_extract import EXACT, LENGTHS, Rows, TwoCheckpoints, features_of, run
from test_factors import assert_close, captured, shapes_of
from test_gradients import batch_of, one_at_a_time, random_examples, with_lora
from test_projection import low_rank_gradients, mean_error, unbiased_error
from tiny import CONFIGS, tiny_model


def matrix_of(sketch, name, shape):
    """(R · C, D) what a flat gradient is multiplied by, entry by entry; the identity for what is formed."""
    if name not in sketch:
        return torch.eye(int(np.prod(shape)))
    (rows, columns), length = sketch.sides[name], sketch.numbers[name]
    matrix = torch.zeros(shape[0] * shape[1], length)
    for i in range(shape[0]):
        for j in range(shape[1]):
            place = (int(rows.places[i]) + int(columns.places[j])) % length
            matrix[i * shape[1] + j, place] = rows.signs[i] * columns.signs[j]
    return matrix


def plainly(model, rows, sketch):
    """Autograd one example at a time, then the written-out matrix of each parameter."""
    gradients, begin, parts = one_at_a_time(model, rows), 0, []
    for name, parameter in trainable_parameters(model).items():
        block = gradients[:, begin : begin + parameter.numel()]
        parts.append(block @ matrix_of(sketch, name, parameter.shape))
        begin += parameter.numel()
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_all_weights_equal_autograd_and_a_count_sketch(kind, tied):
    """Embeddings, heads tied to them, norms and biases too."""
    model, rows = tiny_model(kind, tie_word_embeddings=tied), random_examples([3, 8, 6])
    sketch = make_tensor_sketch(shapes_of(model), 600, seed=1, worth=0)
    assert any("embed" in name or "wte" in name for name in sketch.sides)
    assert_close(captured(model, batch_of(rows), sketch), plainly(model, rows, sketch))


@pytest.mark.parametrize("side", ["left", "right"])
def test_lora_equals_autograd_and_a_count_sketch(side):
    model, rows = with_lora("gpt2", bias="lora_only"), random_examples([5, 17, 2, 9])
    sketch = make_tensor_sketch(shapes_of(model), 100, seed=3, worth=0)
    assert_close(captured(model, batch_of(rows, side), sketch), plainly(model, rows, sketch))


def test_bf16_is_within_its_rounding():
    model, rows = tiny_model("llama"), random_examples([9, 14, 20])
    sketch = make_tensor_sketch(shapes_of(model), 2000, seed=1, worth=0)
    expected = plainly(model, rows, sketch)
    assert torch.cosine_similarity(captured(model.to(torch.bfloat16), batch_of(rows), sketch), expected).min() > 0.99


@given(
    rows=st.integers(1, 40), columns=st.integers(1, 40), tokens=st.integers(1, 5), dimension=st.integers(1, 90),
    examples=st.integers(1, 3),
)  # fmt: skip
def test_any_shape(rows, columns, tokens, dimension, examples):
    """Sides shorter and longer than D, of one coordinate, and sums over tokens."""
    sketch = make_tensor_sketch({"w": (rows, columns)}, dimension, seed=7, worth=-1)
    assert sketch.numbers["w"] >= max(2, min(rows * columns, dimension) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(examples, tokens, rows, generator=generator)
    v = torch.randn(examples, tokens, columns, generator=generator)
    gradient = u.mT @ v
    expected = gradient.flatten(1) @ matrix_of(sketch, "w", (rows, columns))
    found = sketch.product("w", sketch.narrow("w", 0, u), sketch.narrow("w", 1, v))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reduced(sketch, "w", gradient), expected, rtol=1e-4, atol=1e-4)


@given(size=st.integers(1, 60), numbers=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_gpu_gathers_what_a_cpu_scatters(size, numbers, seed):
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(-(-size // numbers) * numbers, generator=generator)[:size]
    side = Side(torch.ones(size), slots % numbers, order_of(slots, numbers))
    values = torch.randn(2, size, generator=generator)
    torch.testing.assert_close(counted(values, side, numbers), gathered(values, side.order, numbers))
    assert side.places.bincount().max() <= -(-size // numbers)  # no place has more than its share


@given(size=st.integers(1, 60), numbers=st.integers(1, 60), seed=st.integers(0, 5))
def test_chunks_are_shifted_and_added(size, numbers, seed):
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(0, numbers, (-(-size // numbers),), generator=generator).tolist()
    values = torch.randn(2, size, generator=generator)
    expected = torch.zeros(2, numbers)
    for i in range(size):
        expected[:, (i + shifts[i // numbers]) % numbers] += values[:, i]
    found = folded(values, numbers, shifts)
    torch.testing.assert_close(found, expected[:, : found.shape[1]])
    assert (expected[:, found.shape[1] :] == 0).all()


def test_it_is_unbiased_and_nearly_as_exact_as_dense_signs():
    """Of inner products of unit rows of low rank: the error falls with the root of D."""

    def narrow(numbers, seed):
        sketch = make_tensor_sketch({"w": (64, 96)}, numbers, seed, worth=-1)
        assert sketch.sizes["w"] == numbers
        return lambda unit: reduced(sketch, "w", unit.view(-1, 64, 96))

    errors = {numbers: unbiased_error(partial(narrow, numbers)) for numbers in (128, 1024)}
    assert 2.3 < errors[128] / errors[1024] < 3.5  # √8
    assert errors[1024] <= 2 * mean_error(low_rank_gradients(), "rademacher", 1024, range(40))


@given(seed=st.integers(0, 10**6))
def test_the_variance_of_rank_one_is_within_its_bound(seed):
    """8 / D of the product of the squared lengths, for vectors with few large coordinates as for others."""
    generator = np.random.default_rng(seed)
    u, v, x, y = (torch.from_numpy(generator.standard_t(2, size=n)).float() for n in (48, 200, 48, 200))
    exact, length = float((u @ x) * (v @ y)), float(u.norm() * v.norm() * x.norm() * y.norm())
    off = []
    for projection in range(100):
        sketch = make_tensor_sketch({"w": (48, 200)}, 256, projection, worth=-1)
        one, other = (
            sketch.product("w", sketch.narrow("w", 0, a[None, None]), sketch.narrow("w", 1, b[None, None]))
            for a, b in ((u, v), (x, y))
        )
        off.append((float((one * other).sum()) - exact) / length)
    assert np.mean(np.square(off)) <= 8 / 256 * 2  # a hundred draws have a spread of their own


def test_features_are_the_projected_gradients_whatever_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("pursuit.gradients.extract.make_tensor_sketch", partial(make_tensor_sketch, worth=0))
    model = with_lora("llama")
    checkpoints, rows = TwoCheckpoints(model), Rows(LENGTHS)
    recipe = replace(EXACT, projection="tensorsketch", preconditioner="sgd", dimension=100)
    found = features_of(run(model, checkpoints, tmp_path / "a", recipe))
    alone = features_of(run(model, checkpoints, tmp_path / "b", replace(recipe, batch_tokens=1, shard_rows=2)))
    sketch = make_tensor_sketch(shapes_of(model), 100, seed=0, worth=0)
    assert len(sketch.sides) == 16
    examples = [
        (torch.tensor(ids).long(), torch.tensor(np.where(response, ids, -100)).long())
        for ids, response in rows.examples
    ]
    for number in range(2):
        checkpoints.load_into(model, number)
        blocks = plainly(model, examples, sketch)
        projection = make_projection("tensorsketch", blocks.shape[1], 100, seed=0)
        accumulator = projection.start(len(blocks), blocks.device)
        projection.add(accumulator, 0, blocks)
        expected = projection.finish(accumulator)
        expected = expected / expected.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(found.checkpoint(number)[:], expected, atol=2e-5)
        np.testing.assert_allclose(alone.checkpoint(number)[:], expected, atol=2e-5)
        np.testing.assert_allclose(found.gradient_norms[number], blocks.norm(dim=1), rtol=1e-4)


def test_only_large_matrices_are_sketched_and_their_sizes_are_powers_of_two():
    shapes = {
        "bias": (5000,), "lora": (4096, 16), "square": (1024, 1024), "wide": (1024, 5000), "head": (150_000, 2048),
    }  # fmt: skip
    sketch = make_tensor_sketch(shapes, 2048, seed=0)  # 512 a matrix, and four times that where it is below √(R · C)
    assert sketch.numbers == {"square": 1024, "wide": 2048, "head": 2048}
    assert sketch.sizes == {"bias": 5000, "lora": 65_536, **sketch.numbers}
    assert make_tensor_sketch(shapes, 64, seed=0).numbers["head"] == 64
    assert make_tensor_sketch(shapes, 10**6, seed=0).numbers == {"wide": MOST, "head": MOST}


def test_the_sides_depend_on_seed_shape_and_name_alone():
    shapes = {"a.weight": (40, 60), "b.weight": (40, 60)}
    both = make_tensor_sketch(shapes, 50, seed=5, worth=0)
    again = make_tensor_sketch({"b.weight": (40, 60)}, 50, seed=5, worth=0)
    for one, other in zip(both.sides["b.weight"], again.sides["b.weight"], strict=True):
        torch.testing.assert_close(one.signs, other.signs, rtol=0, atol=0)
        torch.testing.assert_close(one.places, other.places, rtol=0, atol=0)
    assert not torch.equal(both.sides["a.weight"][1].places, both.sides["b.weight"][1].places)
    other = make_tensor_sketch(shapes, 50, seed=6, worth=0)
    assert not torch.equal(both.sides["a.weight"][0].signs, other.sides["a.weight"][0].signs)


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("kind", ["adam", "less"])
def test_with_a_second_moment_of_rank_one_it_is_adam(kind, momentum):
    """Of matrices, but for a row's own g² in the second moment."""
    model, rows = with_lora("gpt2"), random_examples([5, 12])
    generator = torch.Generator().manual_seed(0)
    first, second = {}, {}
    for name, shape in shapes_of(model).items():
        draw = lambda *size: torch.rand(size, generator=generator) + 0.2  # noqa: E731
        root = 1e-3 * draw(shape[0], 1) * draw(1, shape[1])
        second[name] = ((root - 1e-8).square() * (1 - 0.999**11) if kind == "adam" else root.square() - 1e-8) / 0.999
        first[name] = torch.randn(shape, generator=generator) * 1e-3
    state = AdamState(first, second, step=10)
    sketch = make_tensor_sketch(shapes_of(model), 64, seed=2, worth=0)
    direction, blocks = Preconditioning(kind, state, momentum, sketch=sketch), {}
    batch_gradients(
        model, batch_of(rows), trainable_parameters(model),
        lambda name, block: blocks.update({name: direction(name, block).flatten(1).clone()}), direction.sketch,
    )  # fmt: skip
    exact, gradients, begin = Preconditioning(kind, state, momentum), one_at_a_time(model, rows), 0
    exact.share2 = 0.0
    for name, parameter in trainable_parameters(model).items():
        gradient = gradients[:, begin : begin + parameter.numel()].view(-1, *parameter.shape).clone()
        expected = exact(name, gradient).flatten(1) @ matrix_of(sketch, name, parameter.shape)
        begin += parameter.numel()
        torch.testing.assert_close(blocks[name], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_no_gradient_of_a_sketched_matrix_is_formed(monkeypatch):
    model, shapes, real = tiny_model("llama"), [], torch.bmm
    sketch = make_tensor_sketch(shapes_of(model), 16, seed=0, worth=0)
    monkeypatch.setattr(torch, "bmm", lambda *given, **named: shapes.append(given[0].shape) or real(*given, **named))
    batch_gradients(
        model, batch_of(random_examples([5, 7])), trainable_parameters(model), lambda *_: None, sketch
    )  # fmt: skip
    assert not shapes
    assert shape_of(model, sketch).captured == sum(
        p.numel() for name, p in trainable_parameters(model).items() if name not in sketch
    )
    assert shape_of(model, sketch).sketching > 0


def test_signs_of_a_gradient_that_is_never_formed_are_refused():
    with pytest.raises(SettingsError, match="tensorsketch never forms"):
        settings_from({"features": {"projection": "tensorsketch", "preconditioner": "sign"}})
