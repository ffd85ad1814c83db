"""Numerics on plain arrays: nothing here knows of models, files or methods."""

from __future__ import annotations

from pursuit.solvers.apportion import floor_shares, largest_remainder
from pursuit.solvers.clusters import kmeans
from pursuit.solvers.matching_pursuit import PursuitResult, matching_pursuit
from pursuit.solvers.rows import RowMatrix, RowView, rank_descending

__all__ = [
    "PursuitResult",
    "RowMatrix",
    "RowView",
    "floor_shares",
    "kmeans",
    "largest_remainder",
    "matching_pursuit",
    "rank_descending",
]
