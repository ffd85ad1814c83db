"""k-means for matrices that may be larger than memory."""

from __future__ import annotations

import warnings

import faiss
import numpy as np
from scipy.sparse import csr_matrix

from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, RowMatrix, blocks, check_matrix

ROWS_PER_CLUSTER = 4  # fewer rows than this for a cluster, and the number of clusters is lowered
SAMPLE_PER_CLUSTER = 256
MEAN_BLOCK_ROWS = 1024  # fixed, because the order of summation depends on it


def kmeans(
    matrix: RowMatrix,
    clusters: int,
    *,
    seed: int,
    iterations: int = 25,
    sample: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
    """Group the rows of a matrix into clusters of least squared distance to their means.

    Lloyd's iterations with k-means++ seeding (faiss) run on a sample; every row is then given to the nearest centre,
    and the centres returned are the exact means of the rows given to them. [ours]: the sample, its size, and that an
    empty cluster is left out of the result (the others are renumbered). Deterministic: the same matrix, settings and
    seed give the same result, however the rows are served and whatever `memory_bytes`.

    Args:
        matrix: (n, d) rows.
        clusters: how many are wanted. Lowered to n / 4 with a warning where n is smaller than four times as many.
        seed: of the sample and of the first centres.
        iterations: of Lloyd's algorithm.
        sample: at most so many rows, drawn at random, train the centres; 256 for each cluster without. They are held in
            memory as float32.
        memory_bytes: bound on the memory of a block of rows.

    Returns:
        centres (K, d) float64, mean of the members; assignment (n,) int64 in 0 … K−1, every cluster with a member.

    Raises:
        ValueError: no rows, NaN or infinity (the row is named), fewer than one cluster.
    """
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
    assignment = _nearest(matrix, centres, memory_bytes)
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


def _nearest(matrix: RowMatrix, centres: np.ndarray, memory_bytes: int) -> np.ndarray:
    """(n,) index of the nearest centre of every row; of equally near ones the lowest.

    One float32 product a block; where rounding could decide between the two best, the row is compared in float64.
    """
    out = np.empty(matrix.shape[0], dtype=np.int64)
    exact_centres = centres.astype(np.float64)
    half_squares = 0.5 * np.einsum("ij,ij->i", exact_centres, exact_centres)
    longest = float(np.sqrt(2 * half_squares.max()))
    unit = float(np.finfo(np.float32).eps) * (centres.shape[1] + 4)
    for start, stop, block in blocks(matrix, np.float32, memory_bytes // 4):
        _finite(block, np.arange(start, stop))
        scores = block @ centres.T - half_squares
        out[start:stop] = scores.argmax(axis=1)
        if len(centres) == 1:
            continue
        best_two = np.partition(scores, -2, axis=1)[:, -2:]
        slack = unit * longest * np.linalg.norm(block, axis=1)
        for row in np.flatnonzero(best_two[:, 1] - best_two[:, 0] <= slack):
            exact = np.einsum("ij,j->i", exact_centres, block[row].astype(np.float64)) - half_squares
            out[start + row] = exact.argmax()
    return out


def _means(matrix: RowMatrix, assignment: np.ndarray) -> np.ndarray:
    """(K, d) float64 means of the members, summed in one fixed order."""
    count = int(assignment.max()) + 1
    sums = np.zeros((count, matrix.shape[1]))
    for start in range(0, len(assignment), MEAN_BLOCK_ROWS):
        block = np.ascontiguousarray(matrix[start : start + MEAN_BLOCK_ROWS], np.float64)
        labels = assignment[start : start + MEAN_BLOCK_ROWS]
        places = (labels, np.arange(len(labels)))
        sums += csr_matrix((np.ones(len(labels)), places), shape=(count, len(labels))) @ block
    return sums / np.bincount(assignment, minlength=count)[:, None]
