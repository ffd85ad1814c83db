"""Compressive pursuit in partitions: the cheap form for atoms that lie on many machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from pursuit.solvers.compressive_pursuit import CompressiveResult, check, compressive_pursuit
from pursuit.solvers.passes import Map, Refine
from pursuit.solvers.rows import (
    DEFAULT_MEMORY_BYTES,
    Advance,
    Matrix,
    RowMatrix,
    RowView,
    Vector,
    as_array,
    as_rows,
)


def partitioned_pursuit(
    atoms: Matrix,
    target: Vector,
    budget: int,
    partitions: int | Sequence[np.ndarray],
    *,
    share: int | None = None,
    refine: Refine = "swaps",
    iterations: int = 10,
    tol: float = 1e-6,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    map: Map = map,
    advance: Advance | None = None,
) -> CompressiveResult:
    """`compressive_pursuit` of a target in every partition of the atoms, and once more among what they chose.

    The partition form of GTP (arXiv 2410.16710): each partition is read only by the one that pursues in it, and only
    its choice is sent. What each chooses fits the target by itself and not together with the others' choice: the result
    is mostly farther from the target than that of the exact form, `compressive_pursuit` on all atoms: on the test
    problems by nothing where few atoms resemble the target, by 10 to 30 % where the target is the mean of all, and by
    up to 50 % among random directions (`python -m benchmarks.gtp --problems`).

    Args:
        atoms, target, budget, refine, iterations, tol, memory_bytes, advance: as in `compressive_pursuit`.
        partitions: how many (each is then every so many-th atom), or for each the indices of its atoms.
        share: how many atoms each partition chooses; k without. More is closer to the exact form and costs more.
        map: makes the pursuits of the partitions, like the builtin `map`; function and partitions can be sent.

    Returns:
        the last pursuit, with indices into all atoms; `seconds` are its own.

    Raises:
        ValueError: as in `compressive_pursuit`; no partition, an atom in two of them, or fewer atoms in them than k.
    """
    rows, goal = as_rows(atoms), as_array(target)
    check(rows, goal, budget, refine, iterations, tol)
    parts = _parts(rows.shape[0], partitions)
    budget = min(int(budget), rows.shape[0])
    lengths = np.array([len(part) for part in parts])
    if lengths.sum() < budget:
        raise ValueError(f"{budget} atoms cannot be chosen from partitions that hold {lengths.sum()}")
    share = budget if share is None else share
    while np.minimum(lengths, share).sum() < budget:
        share = max(1, 2 * share)
    pursue = partial(
        _in_part, rows, goal, share, refine=refine, iterations=iterations, tol=tol,
        memory_bytes=memory_bytes,
    )  # fmt: skip
    union = np.sort(np.concatenate(list(map(pursue, parts))))
    result = compressive_pursuit(
        rows[union], goal, budget, refine=refine, iterations=iterations, tol=tol, memory_bytes=memory_bytes,
        advance=advance,
    )  # fmt: skip
    return replace(result, indices=union[result.indices])


def _parts(count: int, partitions: int | Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(partitions, (int, np.integer)):
        if partitions < 1:
            raise ValueError(f"partitions must be at least 1, not {partitions}")
        parts = [np.arange(count)[number::partitions] for number in range(min(int(partitions), max(1, count)))]
    else:
        parts = [np.sort(np.asarray(part, dtype=np.int64)) for part in partitions]
    together = np.concatenate([np.zeros(0, np.int64), *parts])
    if not parts or len(np.unique(together)) < len(together):
        raise ValueError("there is no partition, or an atom is in two of them")
    return parts


def _in_part(
    rows: RowMatrix, goal: np.ndarray, share: int, part: np.ndarray, *, refine: Refine, iterations: int, tol: float,
    memory_bytes: int,
) -> np.ndarray:  # fmt: skip
    """What a partition chooses, as indices into all atoms."""
    held: RowMatrix = RowView(rows, part)
    if len(part) * rows.shape[1] * 4 <= memory_bytes // 2:
        held = held[:]
    result = compressive_pursuit(
        held, goal, share, refine=refine, iterations=iterations, tol=tol, memory_bytes=memory_bytes
    )
    return part[result.indices]
