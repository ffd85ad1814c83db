"""Matching pursuit by atoms on a second device chooses what it chooses on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretend import NAME

from pursuit.selectors import Tagcos
from pursuit.solvers import matching_pursuit, screening
from test_selectors import planted_features
from test_solvers_torch import KINDS, tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1 << 27, 700])
def test_choices_weights_and_residuals(kind, at_once, monkeypatch):
    monkeypatch.setattr(screening, "THERE_AT_ONCE", at_once)
    monkeypatch.setattr(screening, "CHUNK", 8)
    atoms, target, _, _ = tensors(kind)
    atoms[7] = atoms[300] = atoms[3]  # equal rows: the first one is taken
    for settings in ({"ridge": 0.01}, {"ridge": 1.0, "ridge_first": True}, {"positive": False, "ridge": 0.1}):
        here = matching_pursuit(atoms, target, 60, **settings)
        there = matching_pursuit(atoms.to(NAME), target.to(NAME), 60, **settings)
        np.testing.assert_array_equal(here.indices, there.indices)
        np.testing.assert_allclose(here.weights, there.weights, atol=1e-9)
        np.testing.assert_allclose(here.residuals, there.residuals, atol=1e-9)


def test_atoms_that_cannot_be_used_are_named_there_too():
    atoms, target, _, _ = tensors(torch.float32)
    atoms[41, 3] = torch.nan
    with pytest.raises(ValueError, match="row 41 holds NaN"):
        matching_pursuit(atoms.to(NAME), target, 5)


def test_tagcos_chooses_the_same_there():
    features, _ = planted_features()
    here, there = (Tagcos(clusters=4, device=device).select(features, 30) for device in ("cpu", NAME))
    np.testing.assert_array_equal(here.indices, there.indices)
    np.testing.assert_allclose(here.weights, there.weights, atol=1e-9)
