"""How far a selection depends on what should not matter: another seed, one checkpoint alone, half of the projection."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pursuit.errors import SelectionError
from pursuit.progress import say
from pursuit.report import AgreementData, AgreementEntry
from pursuit.selectors import Selection, Selector
from pursuit.solvers.neighbours import unit_sketch
from pursuit.solvers.rows import RowView
from pursuit.store.features import Features, RowMatrix

LIMIT_SECONDS = 600.0  # no run is begun after it
COMPARED = 2_000  # rows of either choice whose cosines are taken
SKETCH = 512
HALVES_NOTE = (
    "A half of the projection is a random half of its coordinates. Each coordinate mixes other random parts of the "
    "gradient, so the two halves stand for two seeds of a projection to half as many numbers: what they agree on does "
    "not hang on the seed, and two projections to all the numbers would agree more."
)
SEED_NOTE = "Another seed changes what is random in the method itself: clusters, samples, ties."
NEAREST_NOTE = (
    "Cosines are between all coordinates, averaged over the checkpoints, of up to 2,000 random rows of each choice."
)


class Variant(NamedTuple):
    """A run to make: what is different, the features, and the seed."""

    name: str
    pool: Features
    target: Features | None
    seed: int


def agreement(
    selector: Selector, features: Features, target: Features | None, budget: int, seed: int, selection: Selection, *,
    limit_seconds: float = LIMIT_SECONDS,
) -> AgreementData:  # fmt: skip
    """Run the method again on each variant, and compare what it chooses with `selection`.

    Variants [ours]: another seed; either random half of the coordinates; each checkpoint alone. The halves are also
    compared with each other.

    Args:
        selector, features, target, budget, seed: as they were for `selection`.
        limit_seconds: no further run is begun after so many seconds, or when the last one's time says that it would
            end beyond; what is left out is named.
    """
    found: dict[str, np.ndarray] = {}
    left_out: list[tuple[str, str]] = []
    variants = list(_variants(selector, features, target, seed))
    started = last = time.monotonic()
    longest = 0.0
    for number, variant in enumerate(variants):
        if last - started + longest > limit_seconds:
            left_out.append((variant.name, f"the limit of {limit_seconds:g} seconds was reached"))
            continue
        say(f"agreement, {number + 1} of {len(variants)}: {variant.name}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the method has given its warnings once
                other = selector.select(variant.pool, budget, target=variant.target, seed=variant.seed)
            found[variant.name] = other.indices
        except SelectionError as error:
            left_out.append((variant.name, str(error).rstrip(".")))
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return _compared(features, selection, found, left_out, seed)


def _compared(
    features: Features, selection: Selection, found: dict[str, np.ndarray], left_out: list[tuple[str, str]], seed: int
) -> AgreementData:
    near = _Nearness(features, seed)
    chosen = selection.indices
    entries = [AgreementEntry(name, _kept(chosen, other), near(chosen, other)) for name, other in found.items()]
    halves = [found[name] for name in HALVES if name in found]
    between = []
    if len(halves) == 2:
        between = [AgreementEntry("the two halves with each other", _kept(*halves), near(*halves))]
    drawn = np.random.default_rng([seed, 1]).permutation(selection.num_rows)[: len(chosen)]
    notes = [SEED_NOTE] * (SEED in found) + [HALVES_NOTE] * bool(halves)
    notes += [NEAREST_NOTE] * (features.dimension > 0)
    return AgreementData(entries, len(chosen) / selection.num_rows, near(chosen, drawn), between, left_out, notes)


def _kept(chosen: np.ndarray, other: np.ndarray) -> float:
    return float(np.isin(chosen, other).mean()) if len(chosen) else float("nan")


class _Nearness:
    """Mean cosine of a row of one choice with the most similar row of another; NaN without features."""

    def __init__(self, features: Features, seed: int) -> None:
        self.features, self.seed = features, seed

    def __call__(self, chosen: np.ndarray, other: np.ndarray) -> float:
        if not self.features.dimension or not len(chosen) or not len(other):
            return float("nan")
        shared = np.intersect1d(chosen, other)
        apart = np.setdiff1d(chosen, shared)
        if not len(apart):
            return 1.0
        rows = [np.sort(np.random.default_rng(self.seed).permutation(part)[:COMPARED]) for part in (apart, other)]
        try:
            a, b = (unit_sketch(RowView(self.features.average(), part), SKETCH, 0) for part in rows)
        except ValueError:  # zero rows only
            return float("nan")
        cosine = float(np.minimum((a @ b.T).max(axis=1), 1).mean())
        return (len(shared) + cosine * len(apart)) / len(chosen)


SEED = "another seed"
HALVES = ("the first half of the projection", "the second half of the projection")


def _variants(selector: Selector, features: Features, target: Features | None, seed: int) -> Iterator[Variant]:
    yield Variant(SEED, features, target, seed + 1)
    if not selector.needs_features:
        return
    if features.dimension >= 2:
        columns = np.random.default_rng(0).permutation(features.dimension)
        middle = len(columns) // 2
        for name, part in zip(HALVES, (columns[:middle], columns[middle:]), strict=True):
            some = np.sort(part)
            yield Variant(name, _columns(features, some), None if target is None else _columns(target, some), seed)
    for number in range(features.num_checkpoints if features.num_checkpoints > 1 else 0):
        alone = None if target is None else _alone(target, number)
        yield Variant(f"checkpoint {number + 1} alone", _alone(features, number), alone, seed)


def _alone(features: Features, number: int) -> Features:
    part = slice(number, number + 1)
    return Features(
        [features.checkpoint(number)], np.ones(1), features.rows, features.gradient_norms[part],
        features.losses[part], features.norms[part],
    )  # fmt: skip


def _columns(features: Features, columns: np.ndarray) -> Features:
    checkpoints = [_Columns(features.checkpoint(number), columns) for number in range(features.num_checkpoints)]
    # a half is about √½ as long as the whole row, so that the whole's norms are right but for one factor
    return Features(
        checkpoints, features.weights, features.rows, features.gradient_norms, features.losses, features.norms
    )


class _Columns:
    """Some columns of a matrix, its rows scaled to unit length again; zero rows stay zero."""

    def __init__(self, matrix: RowMatrix, columns: np.ndarray) -> None:
        self.matrix, self.columns = matrix, columns
        self.shape: tuple[int, ...] = (matrix.shape[0], len(columns))

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        part = np.asarray(self.matrix[rows], np.float32)[:, self.columns]
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        return part / np.where(lengths > 0, lengths, 1)
