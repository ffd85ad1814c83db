"""Solvers take torch tensors as they take numpy arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pursuit.solvers import (
    as_rows,
    compressive_pursuit,
    facility_location,
    farthest_point,
    kmeans,
    matching_pursuit,
    nearest_neighbours,
    nnls,
    partitioned_pursuit,
    subspace,
)

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def results(atoms, target, gram, right) -> list[np.ndarray]:
    """What every solver gives."""
    pursued = compressive_pursuit(atoms, target, 25)
    parts = partitioned_pursuit(atoms, target, 12, 3)
    matched = matching_pursuit(atoms, target, 25, ridge=0.01)
    unit = atoms[:80]
    similarity = (unit @ unit.T).clip(0)
    chosen = facility_location(similarity, 5)
    return [
        pursued.indices, pursued.weights, parts.indices, matched.indices, matched.weights, *farthest_point(atoms, 9),
        *kmeans(atoms, 4, seed=0), subspace(atoms, 3), nnls(gram, right), *nearest_neighbours(atoms, 4), chosen.indices,
    ]  # fmt: skip


def tensors(kind: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(400, 20, generator=generator, dtype=torch.float64) + 0.5
    atoms = (atoms / atoms.norm(dim=1, keepdim=True)).to(kind)
    target = atoms.double().mean(dim=0).to(torch.float32)
    gram, right = atoms[:30].double() @ atoms[:30].double().T, atoms[:30].double() @ target.double()
    return tuple(tensor.to(device) for tensor in (atoms, target, gram, right))


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_the_same_numbers_in_numpy(kind):
    given = tensors(kind)
    wide = [tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in given]
    expected = results(*(tensor.numpy() for tensor in wide))
    found = results(*given[:1], *given[1:])
    for ours, theirs in zip(found[:8], expected[:8], strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(found[8:12], expected[8:12], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tensors_that_require_gradients_and_views_are_taken():
    atoms, target, _, _ = tensors(torch.float32)
    expected = compressive_pursuit(atoms.numpy(), target.numpy(), 10)
    turned = atoms.T.contiguous().T.requires_grad_()
    assert compressive_pursuit(turned, target.requires_grad_(), 10).indices.tolist() == expected.indices.tolist()


def test_no_copy_is_made_where_numpy_can_look_at_the_same_memory():
    tensor = torch.zeros(5, 3)
    rows = as_rows(tensor)
    tensor[2] = 7
    assert rows[2:3].tolist() == [[7, 7, 7]]
    assert np.shares_memory(rows, tensor.numpy())
    half = as_rows(torch.ones(5, 3, dtype=torch.bfloat16))
    assert half.shape == (5, 3)
    assert half[np.array([4, 0])].dtype == np.float32


def test_lists_of_rows_are_taken():
    atoms, target, _, _ = tensors(torch.float64)
    expected = compressive_pursuit(atoms, target, 10).indices.tolist()
    assert compressive_pursuit(atoms.tolist(), target.tolist(), 10).indices.tolist() == expected
    assert farthest_point(atoms.tolist(), 3)[0].tolist() == farthest_point(atoms, 3)[0].tolist()
