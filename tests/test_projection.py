"""Projections keep inner products as well as dense Rademacher, and depend on (seed, P, d) alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.gradients import make_projection


def project(projection, matrix, cuts=()):
    """Feed the matrix in blocks that end at `cuts`."""
    accumulator = projection.start(len(matrix), matrix.device)
    edges = [0, *sorted(set(cuts)), matrix.shape[1]]
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            projection.add(accumulator, begin, matrix[:, begin:end])
    return projection.finish(accumulator)


def low_rank_gradients(rows=16, seed=0):
    """Like LoRA gradients: sums of outer products whose right factors share a few heavy directions."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(6, 96, generator=generator)
    shared[:, 5] *= 20  # an outlier feature, as language models have
    mix = torch.randn(rows, 4, 6, generator=generator)
    left = torch.randn(rows, 4, 64, generator=generator)
    return torch.einsum("nti,nto->noi", mix @ shared, left).flatten(1)


def one_direction(rows=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6144, generator=generator)
    return base + 0.5 * torch.randn(rows, 6144, generator=generator)


def gaussian(rows=16, seed=0):
    return torch.randn(rows, 6144, generator=torch.Generator().manual_seed(seed))


def mean_error(matrix, method, dimension, seeds=range(150)):
    """Mean |⟨Px, Py⟩ − ⟨x, y⟩| over all pairs of unit rows and over seeds (many: pairs of one seed err together)."""
    unit = matrix / matrix.norm(dim=1, keepdim=True)
    exact = unit @ unit.T
    pairs = torch.triu_indices(len(unit), len(unit), offset=1)
    errors = []
    for seed in seeds:
        rows = project(make_projection(method, unit.shape[1], dimension, seed), unit)
        errors.append((rows @ rows.T - exact)[pairs[0], pairs[1]].abs().mean())
    return float(torch.stack(errors).mean())


def unbiased_error(project_of, seeds=200):
    """Mean error of inner products of unit low-rank rows under `project_of(seed)`; it must be zero on average."""
    unit = low_rank_gradients()
    unit = unit / unit.norm(dim=1, keepdim=True)
    exact, upper = unit @ unit.T, torch.triu_indices(16, 16, offset=1)
    found = []
    for seed in range(seeds):
        rows = project_of(seed)(unit)
        found.append((rows @ rows.T - exact)[upper[0], upper[1]])
    off = torch.stack(found)
    assert (off.mean(dim=0).abs() <= 4.5 * off.std(dim=0) / seeds**0.5).all()
    return float(off.abs().mean())


@pytest.mark.parametrize("dimension", [64, 500, 1024])
@pytest.mark.parametrize("make", [low_rank_gradients, one_direction, gaussian])
def test_sparse_is_as_good_as_dense_rademacher(make, dimension):
    matrix = make()
    assert mean_error(matrix, "sparse", dimension) <= 1.1 * mean_error(matrix, "rademacher", dimension)


@given(
    size=st.integers(1, 3000), dimension=st.integers(1, 300), cuts=st.lists(st.integers(0, 3000), max_size=6),
    method=st.sampled_from(["sparse", "rademacher", "none"]), seed=st.integers(0, 5),
)  # fmt: skip
def test_the_blocks_it_arrives_in_do_not_matter(size, dimension, cuts, method, seed):
    matrix = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    whole = project(make_projection(method, size, dimension, seed), matrix)
    pieces = project(make_projection(method, size, dimension, seed), matrix, [cut for cut in cuts if cut < size])
    torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-4)
    one = project(make_projection(method, size, dimension, seed), matrix[1:2])
    torch.testing.assert_close(whole[1:2], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["sparse", "rademacher"])
def test_it_is_linear_and_seeded(method):
    matrix = gaussian(4)
    make = lambda seed: make_projection(method, matrix.shape[1], 128, seed)  # noqa: E731
    rows = project(make(7), matrix)
    assert torch.equal(rows, project(make(7), matrix))
    assert not torch.allclose(rows, project(make(8), matrix))
    mixed = project(make(7), 2 * matrix[:1] - matrix[1:2])
    torch.testing.assert_close(mixed, 2 * rows[:1] - rows[1:2], rtol=1e-3, atol=1e-3)


def test_the_matrix_is_what_it_says():
    """Explicitly: one ±1 in every row of the sparse matrix, and ±1/√d all over the dense one."""
    identity = torch.eye(1000)
    sparse = project(make_projection("sparse", 1000, 37, 1), identity)
    assert ((sparse != 0).sum(dim=1) == 1).all()
    assert set(sparse[sparse != 0].tolist()) == {-1.0, 1.0}
    dense = project(make_projection("rademacher", 1000, 37, 1), identity)
    torch.testing.assert_close(dense.abs(), torch.full_like(dense, 37**-0.5))
    assert abs(float(dense.sign().mean())) < 0.02


@given(place=st.integers(0, 49_999), method=st.sampled_from(["sparse", "rademacher"]), seed=st.integers(0, 20))
def test_no_coordinate_is_lost(place, method, seed):
    row = torch.zeros(1, 50_000)
    row[0, place] = 1.0
    assert project(make_projection(method, 50_000, 32, seed), row).norm() == pytest.approx(1.0, rel=1e-5)


@given(
    st.integers(1, 90), st.integers(1, 40), st.integers(1, 5), st.lists(st.integers(1, 89), max_size=4),
    st.integers(1, 200),
)  # fmt: skip
def test_a_gpus_way_of_adding_chunks_is_that_of_the_cpu(size, dimension, rows, cuts, together):
    matrix = torch.randn(rows, size, generator=torch.Generator().manual_seed(size))
    projection = make_projection("sparse", size, dimension, 5)
    expected = project(projection, matrix, [cut for cut in cuts if cut < size])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pursuit.gradients.project.GATHERED", together)
        patch.setattr(type(projection), "_add_by_chunk", type(projection)._add_gathered)
        found = project(projection, matrix, [cut for cut in cuts if cut < size])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
