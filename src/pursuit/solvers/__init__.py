"""Numerics on plain arrays: nothing here knows of models, files or methods."""

from __future__ import annotations

from pursuit.solvers.apportion import floor_shares, largest_remainder
from pursuit.solvers.clusters import kmeans
from pursuit.solvers.compressive_pursuit import CompressiveResult, compressive_pursuit
from pursuit.solvers.facility_location import Facilities, facility_location
from pursuit.solvers.farthest_point import farthest_point
from pursuit.solvers.matching_pursuit import PursuitResult, matching_pursuit
from pursuit.solvers.neighbours import nearest_neighbours
from pursuit.solvers.nnls import nnls
from pursuit.solvers.partitions import partitioned_pursuit
from pursuit.solvers.rows import RowMatrix, RowView, as_rows, rank_descending
from pursuit.solvers.subspace import subspace

__all__ = [
    "CompressiveResult",
    "Facilities",
    "PursuitResult",
    "RowMatrix",
    "RowView",
    "as_rows",
    "compressive_pursuit",
    "facility_location",
    "farthest_point",
    "floor_shares",
    "kmeans",
    "largest_remainder",
    "matching_pursuit",
    "nearest_neighbours",
    "nnls",
    "partitioned_pursuit",
    "rank_descending",
    "subspace",
]
