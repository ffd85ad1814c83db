"""k-means for matrices that may be larger than memory."""

from __future__ import annotations

import warnings
from functools import partial

import faiss
import numpy as np
from scipy.sparse import csr_matrix

from pursuit.solvers.rows import Matrix, RowMatrix, as_rows, check_matrix, map_blocks, pass_rows

ROWS_PER_CLUSTER = 4  # fewer rows than this for a cluster, and the number of clusters is lowered
SAMPLE_PER_CLUSTER = 256
MEAN_BLOCK_ROWS = 1024  # fixed, because the order of summation depends on it


def kmeans(
    matrix: Matrix, clusters: int, *, seed: int, iterations: int = 25, sample: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Group the rows of a matrix into clusters of least squared distance to their means.

    Lloyd's iterations with k-means++ seeding (faiss) run on a sample; every row is then given to the nearest centre,
    and the centres returned are the exact means of the rows given to them. [ours]: the sample, its size, and that an
    empty cluster is left out of the result (the others are renumbered). Deterministic: the same matrix, settings and
    seed give the same result, however the rows are served. Beside the sample, a block of rows is in memory.

    Cost: O(s K d) for each of the iterations on a sample of s rows, then O(n K d) once.

    Args:
        matrix: (n, d) rows, numpy or torch or a RowMatrix.
        clusters: how many are wanted. Lowered to n / 4 with a warning where n is smaller than four times as many.
        seed: of the sample and of the first centres.
        iterations: of Lloyd's algorithm.
        sample: at most so many rows, drawn at random, train the centres; 256 for each cluster without. They are held in
            memory as float32.

    Returns:
        centres (K, d) float64, mean of the members; assignment (n,) int64 in 0 … K−1, every cluster with a member.

    Raises:
        ValueError: no rows, NaN or infinity (the row is named), fewer than one cluster.
    """
    matrix = as_rows(matrix)
    rows, width = check_matrix(matrix, "matrix")
    if rows == 0 or width == 0:
        raise ValueError("k-means needs at least one row and one feature")
    if clusters < 1:
        raise ValueError(f"clusters must be at least 1, not {clusters}")
    wanted, clusters = clusters, min(clusters, max(1, rows // ROWS_PER_CLUSTER))
    if clusters < wanted:
        warnings.warn(f"{wanted} clusters are too many for {rows} rows; using {clusters}", stacklevel=2)
    limit = max(clusters, SAMPLE_PER_CLUSTER * clusters if sample is None else sample)
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
    centres = _train(_finite(np.ascontiguousarray(matrix[chosen], np.float32), chosen), clusters, seed, iterations)
    assignment = _nearest(matrix, centres)
    _, assignment = np.unique(assignment, return_inverse=True)
    return _means(matrix, assignment), assignment.astype(np.int64)


def _finite(block: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    # A sum over rows costs less than testing every entry; only where it is not finite are the entries looked at.
    if not np.isfinite(block.sum()):
        bad = numbers[~np.isfinite(block).all(axis=1)]
        if len(bad):
            raise ValueError(f"row {bad[0]} holds NaN or infinity")
    return block


def _train(sample: np.ndarray, clusters: int, seed: int, iterations: int) -> np.ndarray:
    """(clusters, d) float32 centres of a sample that is at least as long."""
    if clusters == 1:
        return sample.mean(axis=0, keepdims=True)
    settings = faiss.ClusteringParameters()
    settings.niter, settings.seed = iterations, int(np.random.default_rng(seed).integers(1, 2**31 - 1))
    settings.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, len(sample)
    training = faiss.Clustering(sample.shape[1], clusters, settings)
    training.train(sample, faiss.IndexFlatL2(sample.shape[1]))
    return faiss.vector_float_to_array(training.centroids).reshape(clusters, -1).copy()


def _nearest(matrix: RowMatrix, centres: np.ndarray) -> np.ndarray:
    """(n,) index of the nearest centre of every row; of equally near ones the lowest."""
    out = np.empty(matrix.shape[0], dtype=np.int64)
    half_squares = 0.5 * np.einsum("ij,ij->i", centres, centres, dtype=np.float64)
    nearest = partial(_nearest_centres, centres, half_squares)
    for start, stop, part in map_blocks(matrix, nearest, pass_rows(matrix.shape[1])):
        out[start:stop] = part
    return out


def _nearest_centres(centres: np.ndarray, half_squares: np.ndarray, rows: np.ndarray, start: int) -> np.ndarray:
    """(rows,) by one float32 product; where rounding could decide between the two best, compared in float64."""
    block = _finite(np.ascontiguousarray(rows, np.float32), np.arange(start, start + len(rows)))
    scores = block @ centres.T - half_squares
    out = scores.argmax(axis=1)
    if len(centres) == 1:
        return out
    best_two = np.partition(scores, -2, axis=1)[:, -2:]
    unit = float(np.finfo(np.float32).eps) * (centres.shape[1] + 4) * float(np.sqrt(2 * half_squares.max()))
    for row in np.flatnonzero(best_two[:, 1] - best_two[:, 0] <= unit * np.linalg.norm(block, axis=1)):
        out[row] = (np.einsum("ij,j->i", centres, block[row], dtype=np.float64) - half_squares).argmax()
    return out


def _means(matrix: RowMatrix, assignment: np.ndarray) -> np.ndarray:
    """(K, d) float64 means of the members, summed in one fixed order."""
    count = int(assignment.max()) + 1
    sums = np.zeros((count, matrix.shape[1]))
    for _, _, (labels, part) in map_blocks(matrix, partial(_sums, assignment), MEAN_BLOCK_ROWS):
        sums[labels] += part
    return sums / np.bincount(assignment, minlength=count)[:, None]


def _sums(assignment: np.ndarray, rows: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The clusters of a block of rows, and the sum of the rows of each."""
    block = np.ascontiguousarray(rows, np.float64)
    labels, places = np.unique(assignment[start : start + len(rows)], return_inverse=True)
    ones = csr_matrix((np.ones(len(rows)), (places, np.arange(len(rows)))), shape=(len(labels), len(rows)))
    return labels, ones @ block
