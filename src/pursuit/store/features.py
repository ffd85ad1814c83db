"""The feature store: unit-norm projected gradients of every pool row at every checkpoint, on disk and memory-mapped.

Layout of a store folder:

    manifest.json                    what made it (provenance), N, T, d, rows a shard, checkpoint weights
    checkpoint-00/00000.safetensors  rows 0 … shard_rows-1 at the first checkpoint:
        features        (n, d)  float16 | bfloat16 | float32, rows of unit norm (a zero gradient stays a zero row);
                                or int8 or bits with `scales` (n,) float32, see pursuit.store.codecs
        norms           (n,)    float32, norm of the projected row before it was scaled
        gradient_norms  (n,)    float32, norm of the plain gradient before preconditioning and projection
        losses          (n,)    float32, mean response loss in nats a token

A shard is written beside and renamed, and carries the SHA-256 of its tensors in its header: it is there whole, or it
is found out. Of a shard that takes more than a minute the rows made so far lie in 00000.unfinished.safetensors, with a
column `done`, and go when it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from pursuit.engine import LOCAL, Engine
from pursuit.errors import StoreError
from pursuit.files import read_json
from pursuit.store.mirror import mirror_of
from pursuit.store.rows import Average, RowMatrix, Sharded, ShardFiles
from pursuit.store.shard_files import SMALL, rows_made, shard_is_whole, unfinished_path, write_shard

BLOCK = 1 << 21  # numbers of rows that are taken in float64 at once


class Features:
    """What a selector sees: N rows at T checkpoints in d dimensions.

    Attributes:
        weights: (T,) float64, the checkpoints' learning-rate weights, summing to 1.
        gradient_norms, losses: (T, N) float32; NaN where unknown.
        norms: (T, N) float32, what the projected rows were divided by to become unit rows; NaN where unknown.
        rows: N rows about the examples, with at least the column `source`.
        engine: where passes over the rows run; this process unless `on` says otherwise.
    """

    engine: Engine = LOCAL

    def __init__(
        self, checkpoints: Sequence[RowMatrix], weights: NDArray[np.float64], rows: pa.Table,
        gradient_norms: NDArray[np.float32], losses: NDArray[np.float32], norms: NDArray[np.float32] | None = None,
    ) -> None:  # fmt: skip
        self._checkpoints = list(checkpoints)
        self.weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.rows = rows
        self.gradient_norms, self.losses = gradient_norms, losses
        self.norms = np.full(losses.shape, np.nan, dtype=np.float32) if norms is None else norms

    @property
    def num_rows(self) -> int:
        """N."""
        return self._checkpoints[0].shape[0]

    @property
    def num_checkpoints(self) -> int:
        """T."""
        return len(self._checkpoints)

    @property
    def dimension(self) -> int:
        """d, of one checkpoint."""
        return self._checkpoints[0].shape[1]

    def checkpoint(self, number: int) -> RowMatrix:
        """(N, d) unit rows of one checkpoint, 0 ≤ number < T."""
        return self._checkpoints[number]

    def average(self) -> RowMatrix:
        """(N, d) Σ_t w_t · unit row: TAGCOS' feature (arXiv 2407.15235, section 3), not scaled again."""
        if self.num_checkpoints == 1:
            return self._checkpoints[0]
        return self.engine.spread(Average(self._checkpoints, self.weights))

    def on(self, engine: Engine) -> Features:
        """The same features, with passes over the rows on an engine's workers. Nothing else about them differs."""
        there = copy.copy(self)
        there.engine, there._checkpoints = engine, [engine.spread(matrix) for matrix in self._checkpoints]
        return there

    @classmethod
    def from_array(
        cls, array: NDArray[Any], *, sources: Sequence[str] | None = None, normalise: bool = True,
        weights: Sequence[float] | None = None,
    ) -> Features:  # fmt: skip
        """Features of one's own: (N, d), or (N, T, d) for T checkpoints.

        Args:
            sources: N names, for `stratified` and for the report.
            normalise: scale every row to unit norm, as the store does; zero rows stay zero.
            weights: T checkpoint weights; equal without.

        Raises:
            StoreError: wrong shape, no rows, or in a row (named) NaN, infinity, or what is too large for float32.
        """
        array = np.asarray(array)
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise StoreError(f"features must be (N, d) or (N, T, d) with at least one row, not {array.shape}.")
        if array.dtype.kind not in "fiu":
            raise StoreError(f"features must be numbers, not {array.dtype}.")
        stacked = array[:, None] if array.ndim == 2 else array
        n, t = stacked.shape[:2]
        if weights is not None and len(weights) != t:
            raise StoreError(f"{len(weights)} checkpoint weights for {t} checkpoints.")
        if sources is not None and len(sources) != n:
            raise StoreError(f"{len(sources)} sources for {n} rows.")
        checkpoints: list[RowMatrix] = []
        norms = np.empty((t, n), dtype=np.float32)
        for number in range(t):
            with np.errstate(over="ignore"):  # told below
                matrix = stacked[:, number].astype(np.float32)
                exact = _norms(matrix)
                norms[number] = exact
            bad = np.flatnonzero(~np.isfinite(norms[number]))
            if len(bad):
                raise StoreError(f"features: row {bad[0]} is not finite in float32 ({len(bad)} such rows in all).")
            if normalise:
                matrix /= np.where(exact > 0, exact, 1)[:, None]
            checkpoints.append(matrix)
        names = ["pool"] * n if sources is None else list(sources)
        rows = pa.table({"index": np.arange(n), "source": pa.array(names, pa.string())})
        unknown = np.full((t, n), np.nan, dtype=np.float32)
        divided_by = norms if normalise else np.ones_like(norms)
        shares = np.ones(t) if weights is None else np.asarray(weights)
        return cls(checkpoints, shares, rows, norms, unknown, divided_by)

    @classmethod
    def without_gradients(cls, rows: pa.Table) -> Features:
        """Rows alone, (N, 0): for methods that look only at the rows."""
        unknown = np.full((1, rows.num_rows), np.nan, dtype=np.float32)
        return cls([np.empty((rows.num_rows, 0), np.float32)], np.ones(1), rows, unknown, unknown)


def _norms(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) of the rows. In float32, squares of numbers below 1e-22 would be lost, and of those above 1e19 infinite."""
    step = max(1, BLOCK // matrix.shape[1])
    blocks = (matrix[start : start + step].astype(np.float64) for start in range(0, len(matrix), step))
    return np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])


class FeatureStore:
    """A store folder: which shards stand, and reading them as `Features`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
        self.num_rows: int = self.manifest["num_rows"]
        self.num_checkpoints: int = len(self.manifest["weights"])
        self.shard_rows: int = self.manifest["shard_rows"]
        self.mirror = mirror_of(folder)
        self._whole = False

    @property
    def num_shards(self) -> int:
        """Shards a checkpoint."""
        return -(-self.num_rows // self.shard_rows)

    def shard_path(self, checkpoint: int, shard: int) -> Path:
        """Where a shard stands or will stand."""
        return self.folder / f"checkpoint-{checkpoint:02d}" / f"{shard:05d}.safetensors"

    def shard_range(self, shard: int) -> range:
        """The pool rows of a shard."""
        return range(shard * self.shard_rows, min(self.num_rows, (shard + 1) * self.shard_rows))

    def write(self, checkpoint: int, shard: int, tensors: dict[str, Tensor]) -> None:
        """Write one shard, and copy it to the mirror if there is one; what was kept of it while unfinished goes."""
        path = self.shard_path(checkpoint, shard)
        write_shard(path, tensors, self.manifest["provenance_digest"])
        unfinished_path(path).unlink(missing_ok=True)
        if self.mirror is not None:
            self.mirror.push(path, self._name(path))

    def missing(self, shards: Iterable[int] | None = None) -> list[tuple[int, int]]:
        """(checkpoint, shard) pairs that are absent or damaged; every shard is read and its digest compared.

        Args:
            shards: look only at these shards; at all without.
        """
        wanted = range(self.num_shards) if shards is None else sorted(set(shards))
        found = [
            (checkpoint, shard)
            for checkpoint in range(self.num_checkpoints)
            for shard in wanted
            if not self._stands(checkpoint, shard)
        ]
        self._whole = shards is None and not found
        return found

    def absent(self) -> list[tuple[int, int]]:
        """(checkpoint, shard) pairs of which no file is there, here or on the mirror; nothing is read."""
        there = set() if self.mirror is None else self.mirror.names
        pairs = [(checkpoint, shard) for checkpoint in range(self.num_checkpoints) for shard in range(self.num_shards)]
        paths = [self.shard_path(*pair) for pair in pairs]
        return [
            pair for pair, path in zip(pairs, paths, strict=True)
            if not path.exists() and self._name(path) not in there
        ]  # fmt: skip

    def rows_left(self, pairs: Iterable[tuple[int, int]]) -> int:
        """Rows of these (checkpoint, shard) pairs that are not made, counted once a checkpoint."""
        return sum(len(self.shard_range(shard)) - rows_made(self.shard_path(number, shard)) for number, shard in pairs)

    def _stands(self, checkpoint: int, shard: int) -> bool:
        path, digest = self.shard_path(checkpoint, shard), self.manifest["provenance_digest"]
        if shard_is_whole(path, digest):
            return True
        return self.mirror is not None and self.mirror.pull(self._name(path), path) and shard_is_whole(path, digest)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def features(self, rows: pa.Table) -> Features:
        """Open the whole store for reading; nothing is copied into memory but norms and losses.

        Raises:
            StoreError: shards are missing or damaged.
        """
        if not self._whole and (missing := self.missing()):
            checkpoint, shard = missing[0]
            raise StoreError(
                f"{self.shard_path(checkpoint, shard)}: missing or damaged ({len(missing)} such shards). "
                "Start the extraction again: it makes only these."
            )
        paths = [
            [self.shard_path(checkpoint, shard) for shard in range(self.num_shards)]
            for checkpoint in range(self.num_checkpoints)
        ]
        columns = [_columns(of_checkpoint) for of_checkpoint in paths]
        gradient_norms, losses, norms = (np.stack([found[name] for found in columns]) for name in SMALL)
        shape = (losses.shape[1], self.manifest["dimension"])
        matrices = [Sharded(ShardFiles(files), self.shard_rows, shape) for files in paths]
        weights = np.asarray(self.manifest["weights"], dtype=np.float64)
        return Features(matrices, weights, rows, gradient_norms, losses, norms)


def is_full(folder: Path) -> bool:
    """Whether a store is there and has a file for every shard; none is read."""
    return (folder / "manifest.json").exists() and not FeatureStore(folder).absent()


def _columns(paths: Sequence[Path]) -> dict[str, NDArray[np.float32]]:
    """The columns of numbers, (N,) each, of all shards of a checkpoint."""
    parts: dict[str, list[Tensor]] = {name: [] for name in SMALL}
    for path in paths:
        with safe_open(path, framework="pt") as handle:
            for name, found in parts.items():
                found.append(handle.get_tensor(name).clone())  # so that no mapping of the file stays
    return {name: torch.cat(found).numpy() for name, found in parts.items()}
