"""Matrices that are read a block of rows at a time, so that they may be larger than memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

Part = TypeVar("Part")
Advance = Callable[[int], object]

DEFAULT_MEMORY_BYTES = 1 << 30
MAX_BLOCK_BYTES = 8 << 20  # beyond this a larger block only costs memory
PASS_BYTES = 2 << 20  # of a block of float64 rows in a pass over a whole matrix: it stays near the processor
MAPPED_BYTES = 256 << 20  # of a mapped file that a pass may leave in memory


class RowMatrix(Protocol):
    """A matrix of shape (n, d) that gives rows as a numpy array: a numpy array is one, a view over a store another."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows given by a slice or an int64 index array, as a floating-point array (rows, d)."""


class RowView:
    """Some rows of a RowMatrix, in the order of `indices`, read when asked for: itself a RowMatrix."""

    def __init__(self, matrix: RowMatrix, indices: np.ndarray) -> None:
        self.matrix, self.indices = matrix, np.asarray(indices, dtype=np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """(number of indices, d)."""
        return (len(self.indices), self.matrix.shape[1])

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The rows, read from the underlying matrix."""
        return self.matrix[self.indices[rows]]


Matrix = RowMatrix | torch.Tensor
Vector = np.ndarray | torch.Tensor


class TensorRows:
    """A torch tensor (n, d) on any device and of any floating-point type as a RowMatrix: rows are moved when asked for.

    bfloat16 and float16, which numpy lacks or is slow with, come as float32.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()
        self.shape: tuple[int, ...] = tuple(tensor.shape)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The rows, moved to memory."""
        if isinstance(rows, np.ndarray):
            rows = torch.from_numpy(rows).to(self.tensor.device)
        found = self.tensor[rows].cpu()
        return (found if found.dtype in (torch.float32, torch.float64) else found.float()).numpy()


def as_rows(matrix: Matrix) -> RowMatrix:
    """A torch tensor as a RowMatrix, without a copy; a list of rows as an array; a RowMatrix as it is."""
    if not isinstance(matrix, torch.Tensor):
        return matrix if hasattr(matrix, "shape") else np.asarray(matrix, dtype=np.float64)
    if matrix.device.type == "cpu" and matrix.dtype in (torch.float32, torch.float64):
        return matrix.detach().numpy()
    return TensorRows(matrix)


def on_device(rows: np.ndarray, device: str) -> np.ndarray | torch.Tensor:
    """The rows there if they fit, else the array itself; also where that device is not, as on some worker."""
    if device == "cpu":
        return rows
    try:
        return torch.from_numpy(rows).to(device)
    except (RuntimeError, AssertionError):  # torch asserts that it was built for CUDA
        return rows


def as_array(values: Vector) -> np.ndarray:
    """A float64 array, of a torch tensor (any device, any type) or of whatever numpy takes."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    return np.ascontiguousarray(values, dtype=np.float64)


def check_matrix(matrix: RowMatrix, name: str) -> tuple[int, int]:
    """Return (n, d) of a matrix, or raise ValueError when it does not have two dimensions."""
    if len(matrix.shape) != 2:
        raise ValueError(f"{name} must have two dimensions (rows, features), not the shape {tuple(matrix.shape)}")
    return int(matrix.shape[0]), int(matrix.shape[1])


def block_bounds(rows: int, row_bytes: int, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of rows, each within the memory bound (and at least one row)."""
    step = max(1, min(memory_bytes, MAX_BLOCK_BYTES) // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def blocks(matrix: RowMatrix, dtype: type, memory_bytes: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Read a matrix from its first row to its last: (start, stop, contiguous block of `dtype`)."""
    rows, width = check_matrix(matrix, "matrix")
    for start, stop in block_bounds(rows, width * np.dtype(dtype).itemsize, memory_bytes):
        yield start, stop, np.ascontiguousarray(matrix[start:stop], dtype=dtype)


def pass_rows(width: int) -> int:
    """Rows of a block in a pass over a whole matrix: always the same, so that results are the same bits everywhere."""
    return max(1, PASS_BYTES // (8 * max(1, width)))


def map_blocks(
    matrix: RowMatrix, function: Callable[[np.ndarray, int], Part], block_rows: int
) -> Iterator[tuple[int, int, Part]]:
    """(start, stop, function(rows start … stop, start)) of consecutive blocks, in order.

    A matrix whose rows are spread over several machines brings a method `map_blocks` of its own, which applies the
    function where the rows are. Blocks are the same there and here, so results are the same bits; the function must be
    one that can be sent (a module's function, or a `functools.partial` of one).
    """
    spread = getattr(matrix, "map_blocks", None)
    if spread is not None:
        yield from spread(function, block_rows)
        return
    rows, width = check_matrix(matrix, "matrix")
    let_go = max(1, MAPPED_BYTES // (4 * max(1, width * block_rows)))
    for number, start in enumerate(range(0, rows, block_rows)):
        stop = min(rows, start + block_rows)
        yield start, stop, function(matrix[start:stop], start)
        if number % let_go == let_go - 1:
            release(matrix)
    release(matrix)


def release(matrix: RowMatrix) -> None:
    """Let go of the pages of a mapped file, which otherwise count as memory of this process until the system needs it.

    They stay in the system's cache while there is room, so reading them again is cheap.
    """
    while isinstance(matrix, RowView):
        matrix = matrix.matrix
    mapped = getattr(matrix, "_mmap", None)
    shared = isinstance(matrix, np.memmap) and matrix.mode in ("r", "r+", "w+")  # changes of a private copy would go
    if shared and mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def row_dots(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Inner products ⟨row, vector⟩ in float64, each summed in one fixed order.

    A BLAS product may sum a row differently depending on its place in the block; here equal rows always get equal bits.
    """
    return np.einsum("ij,j->i", np.ascontiguousarray(rows, dtype=np.float64), vector)


def gathered_dots(matrix: RowMatrix, indices: np.ndarray, vector: np.ndarray, memory_bytes: int) -> np.ndarray:
    """`row_dots` of chosen rows of a matrix, read within the memory bound."""
    out = np.empty(len(indices))
    for start, stop in block_bounds(len(indices), matrix.shape[1] * 8, memory_bytes):
        out[start:stop] = row_dots(matrix[indices[start:stop]], vector)
    release(matrix)
    return out


def rank_descending(scores: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices from the highest score to the lowest; equal scores in the order of their index.

    Scores count as equal when a chain of neighbours, each within `tolerance` of the next, joins them: rounding then
    cannot decide the order of duplicates.
    """
    order = np.argsort(-scores, kind="stable")
    gaps = -np.diff(scores[order], prepend=scores[order[:1]])
    group = np.cumsum(gaps > tolerance)
    return order[np.lexsort((order, group))]
