"""LESS: the rows whose gradients point most towards a target set (arXiv 2402.04333)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pursuit.progress import progress
from pursuit.selectors.base import Selector
from pursuit.selectors.quotas import Quotas, check_quotas, interleaved, quota_shares
from pursuit.selectors.selection import Selection
from pursuit.selectors.stratified import source_codes
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, RowMatrix, blocks, rank_descending

if TYPE_CHECKING:
    from pursuit.store.features import Features

ROUNDING = 1e-12


class Less(Selector):
    """Rows with the greatest influence on the target: the k best by gradient similarity.

    score(z) = max over subtasks of the mean over the subtask's examples z' of Σ_t w_t ⟨Γ̂_t(z), ĝ_t(z')⟩, with unit rows
    and the checkpoints' learning-rate weights (LESS, arXiv 2402.04333, section 4). The subtasks are the sources of the
    target set. [ours]: scores that differ by rounding only (1e-12) are equal, and the lower index comes first; with
    `quotas` every subtask gets its share of the budget: the subtasks take turns, in proportion to their shares, and
    each takes the row of the best score for it that no other has taken.

    Columns of the selection: `score`, and `subtask` (the place in the diagnostics' `subtasks` of the one with the
    largest score, or, with quotas, of the one that the row was chosen for).
    """

    name: ClassVar[str] = "less"
    paper: ClassVar[str] = "LESS, arXiv 2402.04333"
    needs_target: ClassVar[bool] = True

    quotas: Quotas = Field(
        None, description="shares of the budget by subtask, such as mmlu=2,bbh=1; the largest score over all subtasks "
        "decides (as published) if not given",
    )  # fmt: skip
    memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES, ge=1 << 20, description="bound on the memory of the rows read at once, in bytes; "
        "the choice does not depend on it",
    )  # fmt: skip

    def check_target_sets(self, names: Sequence[str]) -> None:
        """Quotas have to name them all, and nothing else."""
        check_quotas(self.name, self.quotas, names)

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        assert target is not None  # checked by `select`
        names, codes = source_codes(target)
        scores = np.zeros((features.num_rows, len(names)))
        with progress("scores", features.num_rows * features.num_checkpoints) as advance:
            for number, weight in enumerate(features.weights):
                means = _group_means(target.checkpoint(number), codes, len(names), self.memory_bytes)
                for start, stop, block in blocks(features.checkpoint(number), np.float64, self.memory_bytes):
                    scores[start:stop] += weight * (block @ means.T)
                    advance(stop - start)
        _check(scores)
        best = scores.max(axis=1)
        if self.quotas is None:
            chosen = rank_descending(best, ROUNDING)[:budget]
            subtask = (scores[chosen] >= best[chosen, None] - ROUNDING).argmax(axis=1)
        else:
            chosen, subtask = _in_turn(scores, quota_shares(self.name, self.quotas, names, budget))
        reached = scores[chosen, subtask]
        subtasks = [
            {"subtask": name, "examples": int(count), "chosen": int(of_it)}
            for name, count, of_it in zip(
                names, np.bincount(codes), np.bincount(subtask, minlength=len(names)), strict=True
            )
        ]
        columns = {"score": reached, "subtask": subtask.astype(np.int64)}
        diagnostics = {"subtasks": subtasks, "scores": _quantiles(best), "scores_chosen": _quantiles(reached)}
        return self._selection(features, chosen, columns=columns, diagnostics=diagnostics)


def _group_means(matrix: RowMatrix, codes: np.ndarray, groups: int, memory_bytes: int) -> np.ndarray:
    """(groups, d) float64 mean of the rows of each group."""
    sums = np.zeros((groups, matrix.shape[1]))
    for start, _, block in blocks(matrix, np.float64, memory_bytes):
        for row, code in zip(block, codes[start:], strict=False):  # one by one: the same sums for any block
            sums[code] += row
    return sums / np.bincount(codes, minlength=groups)[:, None]


def _in_turn(scores: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that subtasks choose in turn, each its best of those left; and the subtask of each row."""
    turns = np.repeat(np.arange(len(shares)), shares)[interleaved(shares)]
    ranked = [rank_descending(scores[:, subtask], ROUNDING) for subtask in range(len(shares))]
    seen, taken = np.zeros(len(shares), dtype=np.int64), np.zeros(len(scores), dtype=bool)
    chosen = np.empty(len(turns), dtype=np.int64)
    for turn, subtask in enumerate(turns):
        while taken[ranked[subtask][seen[subtask]]]:
            seen[subtask] += 1
        chosen[turn] = ranked[subtask][seen[subtask]]
        taken[chosen[turn]] = True
    return chosen, turns


def _check(scores: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise ValueError(f"NaN or infinity in the features of row {bad[0]} or of the target")
    if not scores.any():
        raise ValueError("every score is zero: the features of the pool or of the target are all zero")


def _quantiles(values: np.ndarray) -> list[float]:
    """Minimum, quartiles and maximum."""
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]
