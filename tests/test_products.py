"""Products of several matrices' sides, at once or put off, are those of each alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.gradients.factors import make_factors
from pursuit.gradients.products import Products
from pursuit.gradients.tensorsketch import make_tensor_sketch

SHAPES = [(5, 7), (5, 7), (7, 5), (3, 7)]


@given(
    st.lists(st.integers(0, len(SHAPES) - 1), min_size=1, max_size=12), st.integers(0, 4000), st.integers(1, 3),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1000),
)  # fmt: skip
def test_each_is_handed_over_once_however_many_are_put_off(kinds, most, examples, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}

    def done(name, block):
        assert name not in found
        found[name] = block.float().clone()
        block.fill_(float("nan"))  # it may be used up

    products, expected = Products(done, most), {}
    for place, kind in enumerate(kinds):
        rows, columns = (torch.randn(examples, 4, side, generator=generator) for side in SHAPES[kind])
        expected[f"p{place}"] = torch.einsum("btr,btc->brc", rows.to(dtype).double(), columns.to(dtype).double())
        products(f"p{place}", rows.to(dtype), columns, None)  # the columns are converted
    products.flush()
    assert set(found) == set(expected)
    for name, block in found.items():
        torch.testing.assert_close(
            block.double(), expected[name], rtol=0.02, atol=0.1 if dtype != torch.float32 else 1e-4
        )


@pytest.mark.parametrize("make", [make_factors, lambda *given: make_tensor_sketch(*given, worth=1)])
@pytest.mark.parametrize(("most", "least"), [(0, 0), (20_000, 1), (1 << 20, 6)])
def test_sketched_sides_are_brought_together_by_their_shape(make, most, least):
    shapes = {f"p{place}": (48, 64) for place in range(5)} | {"wide": (96, 130)}
    sketch = make(shapes, 256, 3)
    found: dict[str, torch.Tensor] = {}
    products, expected = Products(lambda name, block: found.update({name: block.clone()}), most), {}
    for name, shape in shapes.items():
        assert name in sketch
        rows, columns = (sketch.narrow(name, side, torch.randn(2, 6, shape[side])) for side in (0, 1))
        products(name, rows, columns, sketch)
        expected[name] = sketch.product(name, rows, columns)
    put_off = len(shapes) - len(found)
    products.flush()
    assert put_off >= least
    assert set(found) == set(expected)
    for name, block in found.items():
        torch.testing.assert_close(block, expected[name])


def test_without_room_each_is_made_at_once_and_memory_is_used_again():
    pointers, products = set(), Products(lambda _, block: pointers.add(block.data_ptr()), 0)
    for place in range(3):
        products(f"p{place}", torch.randn(2, 4, 5), torch.randn(2, 4, 7), None)
        assert len(pointers) == 1
