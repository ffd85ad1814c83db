"""RDS+: the rows whose embeddings are most like those of a target's examples (arXiv 2503.01807)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pursuit.progress import progress
from pursuit.selectors.base import Selector
from pursuit.selectors.loss import quantiles
from pursuit.selectors.quotas import Quotas, check_quotas, interleaved, quota_shares, target_parts
from pursuit.selectors.selection import Selection
from pursuit.selectors.stratified import source_codes
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, RowMatrix, map_blocks

if TYPE_CHECKING:
    from pursuit.store.features import Features

STEPS = 1 << 24  # cosines are compared in steps of 2⁻²⁴, the precision of float32: rounding cannot order duplicates
INDEX = (1 << 32) - 1  # the lower half of a key
NOTHING = np.iinfo(np.int64).min  # less than every key


class Rds(Selector):
    """Rows most similar to the target's examples, by cosine of their embeddings; each example takes its turn.

    RDS+ ("Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807): the embedding is the mean of the last
    hidden states of the model as given, weighted by position; each example of the target in turn takes the row most
    similar to it. One forward pass over pool and target is all it costs. [ours]: an example whose nearest row is taken
    goes on to its next one, instead of losing its turn; several target sets (sources of the target's rows) take turns
    first, by `quotas`, and within a set its examples do; cosines that differ by less than 6e-8 are equal, and the lower
    index comes first. With `choose=mean-max`, the rows with the largest mean similarity to a target set's examples, and
    of several sets the largest of their means [ours].

    Features of one's own are taken as the embeddings (averaged over their checkpoints, where they have several).

    Columns of the selection: `score` (the cosine, or the mean), `example` (the target's row that the row was taken for;
    round-robin only) and `target` (the place of its target set in the diagnostics' `targets`).
    """

    name: ClassVar[str] = "rds"
    paper: ClassVar[str] = "RDS+, arXiv 2503.01807"
    needs_target: ClassVar[bool] = True

    choose: Literal["round-robin", "mean-max"] = Field(
        "round-robin", description="each example takes its nearest row in turn, or the rows with the largest mean "
        "similarity to all examples",
    )  # fmt: skip
    quotas: Quotas = Field(
        None, description="shares of the budget by target set, such as mmlu=2,bbh=1; equal ones if not given"
    )
    memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES, ge=1 << 20, description="bound on the memory of similarities held at once, in bytes; "
        "the choice does not depend on it",
    )  # fmt: skip

    @property
    def needs_embeddings(self) -> bool:
        """Always."""
        return True

    @model_validator(mode="after")
    def _quotas_have_a_use(self) -> Self:
        if self.quotas is not None and self.choose == "mean-max":
            raise ValueError("quotas share the turns of round-robin, and choose=mean-max has none")
        return self

    def check_target_sets(self, names: Sequence[str]) -> None:
        """Quotas have to name them all, and nothing else."""
        check_quotas(self.name, self.quotas, names)

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        assert target is not None  # checked by `select`
        names, parts = target_parts(target)
        examples, pool = _unit_examples(target.average()), features.average()
        if self.choose == "mean-max":
            indices, owners, scores = largest_means(pool, examples, parts, budget, self.memory_bytes)
            columns, facts = {}, {}
        else:
            turns = _turns(parts, quota_shares(self.name, self.quotas, names, budget))
            indices, scores, passes = take_in_turn(pool, examples, turns, self.memory_bytes)
            owners, columns, facts = source_codes(target)[1][turns], {"example": turns}, {"passes": passes}
        targets = [
            {"target": name, "examples": len(part), "chosen": int((owners == number).sum())}
            for number, (name, part) in enumerate(zip(names, parts, strict=True))
        ]
        diagnostics = {"targets": targets, "scores_chosen": quantiles(scores), **facts}
        columns = {"score": scores, "target": owners, **columns}
        return self._selection(features, indices, columns=columns, diagnostics=diagnostics)


def _unit_examples(matrix: RowMatrix) -> np.ndarray:
    """(M, d) float64 unit rows of the target; ValueError for a row without a direction."""
    rows = np.asarray(matrix[0 : matrix.shape[0]], dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~((norms > 0) & np.isfinite(norms)))
    if len(bad):
        raise ValueError(f"row {bad[0]} of the target is zero or not finite, so nothing can be similar to it")
    return rows / norms[:, None]


def _turns(parts: list[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """(Σ shares,) which example takes a row in each turn: the sets by turns, and within a set its examples."""
    sets = np.repeat(np.arange(len(shares)), shares)[interleaved(shares)]
    turns = np.empty(len(sets), dtype=np.int64)
    for number, part in enumerate(parts):
        mine = np.flatnonzero(sets == number)
        turns[mine] = part[np.arange(len(mine)) % len(part)]
    return turns


def take_in_turn(
    pool: RowMatrix, examples: np.ndarray, turns: np.ndarray, memory_bytes: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """In every turn an example takes the most similar row that none has taken, of equal ones that of lowest index.

    Lists of each example's nearest rows are made in one pass over the pool, long enough for most cases; where one is
    used up, another pass makes longer ones of the rows that are left. O(N·M·d) a pass.

    Args:
        pool: (N, d).
        examples: (M, d) float64 unit rows.
        turns: (k,) numbers of the examples, k ≤ N.

    Returns:
        (k,) rows, (k,) cosines, and how many passes there were.
    """
    taken = np.zeros(pool.shape[0], dtype=bool)
    indices, scores = np.empty(len(turns), dtype=np.int64), np.empty(len(turns))
    longest = max(1, memory_bytes // (32 * len(examples)))
    length = 64 + 4 * int(np.bincount(turns).max())
    passes = 0
    place, keys = np.zeros(len(examples), dtype=np.int64), np.empty((len(examples), 0), dtype=np.int64)
    for turn, example in enumerate(turns):
        found = _first_open(keys[example], int(place[example]), taken)
        if found is None:
            left = len(turns) - turn  # no example can come to need more than the rows still to be taken
            keys = _nearest_lists(pool, examples, min(length, longest, left), np.flatnonzero(taken), memory_bytes)
            length, passes, found = 2 * length, passes + 1, 0
            place[:] = 0
        place[example] = found + 1
        key = int(keys[example, found])
        indices[turn], scores[turn] = INDEX - (key & INDEX), (key >> 32) / STEPS
        taken[indices[turn]] = True
    return indices, scores, passes


def _first_open(keys: np.ndarray, place: int, taken: np.ndarray) -> int | None:
    """The first place of a list, from `place` on, whose row is not taken."""
    for start in range(place, len(keys), 256):
        is_open = ~taken[INDEX - (keys[start : start + 256] & INDEX)]
        if is_open.any():
            return start + int(is_open.argmax())
    return None


def _nearest_lists(
    pool: RowMatrix, examples: np.ndarray, length: int, taken: np.ndarray, memory_bytes: int
) -> np.ndarray:
    """(M, ≤ length) keys of each example's nearest rows that are not taken, nearest first."""
    best = np.empty((len(examples), 0), dtype=np.int64)
    nearest = partial(_nearest_in_block, examples=examples, length=length, taken=taken)
    with progress("similarities", pool.shape[0]) as advance:
        for start, stop, keys in map_blocks(pool, nearest, _block_rows(pool, len(examples), memory_bytes)):
            best = _largest(np.concatenate([best, keys], axis=1), length)
            advance(stop - start)
    best = -np.sort(-best, axis=1)
    return best[:, : pool.shape[0] - len(taken)]  # beyond stand taken rows


def _nearest_in_block(
    rows: np.ndarray, start: int, *, examples: np.ndarray, length: int, taken: np.ndarray
) -> np.ndarray:
    """(M, ≤ length) keys of a block's rows: cosine in the upper half, the index, counted down, in the lower."""
    steps = np.rint(_cosines(rows, start, examples=examples) * STEPS).astype(np.int64)
    keys = (steps << 32) | (INDEX - (start + np.arange(len(rows), dtype=np.int64)))
    first, last = np.searchsorted(taken, [start, start + len(rows)])
    keys[:, taken[first:last] - start] = NOTHING
    return _largest(keys, length)


def _largest(keys: np.ndarray, length: int) -> np.ndarray:
    """The `length` largest of each row, in any order."""
    if keys.shape[1] <= length:
        return keys
    return np.partition(keys, keys.shape[1] - length, axis=1)[:, -length:]


def _cosines(rows: np.ndarray, start: int, *, examples: np.ndarray) -> np.ndarray:
    """(M, rows) float64; a zero row is similar to nothing."""
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    if not np.isfinite(norms).all():
        raise ValueError("NaN or infinity in the embeddings of the pool")
    return (examples @ rows.T) / np.where(norms > 0, norms, 1)


def _block_rows(pool: RowMatrix, examples: int, memory_bytes: int) -> int:
    """Rows whose values and similarities (each with its copies) take at most a quarter of the memory."""
    return max(1, min(4096, memory_bytes // 4 // (24 * examples + 16 * pool.shape[1])))


def largest_means(
    pool: RowMatrix, examples: np.ndarray, parts: list[np.ndarray], budget: int, memory_bytes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `budget` rows with the largest mean cosine to the examples of a set: rows, the set of each, and the mean."""
    means = np.stack([examples[part].mean(axis=0) for part in parts])  # the mean of cosines is the cosine's numerator
    scores = np.empty((len(parts), pool.shape[0]))
    with progress("similarities", pool.shape[0]) as advance:
        block_rows = _block_rows(pool, len(parts), memory_bytes)
        for start, stop, cosines in map_blocks(pool, partial(_cosines, examples=means), block_rows):
            scores[:, start:stop] = np.rint(cosines * STEPS) / STEPS
            advance(stop - start)
    best = scores.max(axis=0)
    chosen = np.argsort(-best, kind="stable")[:budget]
    return chosen, scores[:, chosen].argmax(axis=0), best[chosen]
