"""The directions that a run's features keep exactly, learnt once, before any feature is made: from rows of the pool and
of the target that it began with. See `pursuit.gradients.directions`.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from pursuit.batches import BATCH_TOKENS_OF_A_GPU
from pursuit.encoding import EncodedPool
from pursuit.gradients.directions import leading_directions, read_directions, wide_dimension, write_directions
from pursuit.gradients.extract import extract
from pursuit.recipes import Recipe
from pursuit.settings import Settings
from pursuit.warmup.trajectory import Trajectory

MOST_ROWS = 256  # of the pool, and of the target
POOL_SHARE = 16  # at most one row in so many of the pool: a small one should not be read twice


class Sample:
    """Some rows of an encoded pool; itself `EncodedRows`."""

    def __init__(self, encoded: EncodedPool, rows: NDArray[np.int64]) -> None:
        self._encoded, self._rows = encoded, rows
        self.lengths: NDArray[np.int32] = encoded.lengths[rows]
        self.rows: pa.Table = encoded.rows.take(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(L,) token ids and (L,) response mask of one row."""
        return self._encoded[int(self._rows[index])]


def known_count(rows: int, *, of_pool: bool) -> int:
    """How many of so many rows, of a pool or of a target, are passed to learn from them."""
    return min(MOST_ROWS, math.ceil(rows / POOL_SHARE) if of_pool else rows)


def known_recipes(settings: Settings, *, of_pool: bool) -> list[Recipe]:
    """In which ways: a target's rows with each preconditioner that methods may ask for."""
    recipes = {settings.feature_recipe()} if of_pool else {settings.target_recipe(follows) for follows in (False, True)}
    return sorted(recipes, key=lambda recipe: recipe.preconditioner)


def learn_directions(
    place: Path, settings: Settings, model: nn.Module, trajectory: Trajectory, sources: Mapping[str, EncodedPool],
    provenance: Callable[[EncodedPool, Trajectory], Mapping[str, Any]],
) -> None:  # fmt: skip
    """Write the directions in which known rows are longest, of all checkpoints together.

    Rows are passed one at a time, so that the directions do not hang on the size of batches; on a GPU, which would wait
    for each, in batches of a size that no setting changes. Their gradients are kept beside `place` until it is written:
    a killed run makes none of them again but those of the last minute.

    Args:
        sources: "pool", and of a target its digest → rows, of which some are taken. Those of a target are taken with
            each preconditioner that methods may ask for.
        provenance: what else the gradients of such rows hang on.

    Raises:
        As `pursuit.gradients.extract.extract`.
    """
    recipe, scratch, known = settings.feature_recipe(), place.with_suffix(".rows"), []
    at_once = 1 if next(model.parameters()).device.type == "cpu" else BATCH_TOKENS_OF_A_GPU
    for name, encoded in sources.items():
        order = np.random.default_rng([recipe.seed, 2]).permutation(len(encoded))
        sample = Sample(encoded, np.sort(order[: known_count(len(encoded), of_pool=name == "pool")]))
        for kind in known_recipes(settings, of_pool=name == "pool"):
            wide = replace(kind, dimension=wide_dimension(kind.dimension), dtype="float32", batch_tokens=at_once)
            store = extract(
                model, trajectory, sample, scratch / f"{name}-{kind.preconditioner}", wide,
                provenance=provenance(encoded, trajectory),
                describe=f"directions, {'pool' if name == 'pool' else f'target ({kind.preconditioner})'}",
            )  # fmt: skip
            features = store.features(sample.rows)
            known += [np.asarray(features.checkpoint(t)[:], np.float32) for t in range(features.num_checkpoints)]
    basis = leading_directions(np.concatenate(known), int(settings.features.directions * recipe.dimension))
    write_directions(place, basis, recipe.dimension, [name for name in sources if name != "pool"])
    shutil.rmtree(scratch)


def warn_of_unknown(place: Path, target: str) -> None:
    """Say that a target's rows were not among the known."""
    if target not in read_directions(str(place)).targets:
        warnings.warn(
            "the directions that this run keeps exactly were learnt without this target, so its rows are kept little "
            "better than by a projection alone. A choice in a run that begins with it hangs less on the projection.",
            stacklevel=2,
        )
