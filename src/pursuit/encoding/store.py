"""The encoded pool on disk: shards of tokens and masks, a table of rows beside each, one manifest over all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from pursuit.errors import StoreError
from pursuit.files import read_json, sha256_file
from pursuit.pool.examples import Refusal

MANIFEST = "manifest.json"
ROW_SCHEMA = pa.schema(
    [
        ("index", pa.int64()), ("row", pa.int64()), ("path", pa.string()), ("line", pa.int64()),
        ("source", pa.string()), ("length", pa.int32()), ("response_length", pa.int32()), ("full_length", pa.int32()),
        ("truncated", pa.bool_()), ("straddling", pa.int32()), ("text_hash", pa.string()), ("prompt_hash", pa.string()),
    ]
)  # fmt: skip


def tokens_path(folder: Path, shard: int) -> Path:
    """Where a shard's tokens are."""
    return folder / f"{shard:05d}.safetensors"


def rows_path(folder: Path, shard: int) -> Path:
    """Where a shard's table of rows is."""
    return folder / f"rows-{shard:05d}.parquet"


def record_path(folder: Path, shard: int) -> Path:
    """Where a shard's record is: written after its tokens and rows, so that it stands for a whole shard."""
    return folder / f"shard-{shard:05d}.json"


class EncodedPool:
    """The tokens of a pool's accepted rows, memory-mapped; `index` i is the i-th accepted row.

    Checksums are verified when a shard is first read; the row tables are verified on opening.

    Args:
        folder: as written by `encode_pool`.

    Attributes:
        manifest: counts, settings and the shards with their checksums.
        rows: (N rows) pyarrow.Table with the columns index, row, path, line, source, length, response_length,
            full_length, truncated, straddling, text_hash, prompt_hash.
        lengths: (N,) int32 tokens kept of each row; `response_lengths`: (N,) int32 labelled tokens among them.
        refused: the rows that were skipped.

    Raises:
        StoreError: there is no finished store in the folder, or a file of it is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise StoreError(f"{self.folder}: holds no finished encoding (no {MANIFEST}); run the encoding again")
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        shards = self.manifest["shards"]
        self._first = np.cumsum([0] + [shard["count"] for shard in shards])  # (shards + 1,) first index of each
        tables = [self._read_rows(number) for number in range(len(shards))]
        self.rows = pa.concat_tables(tables).unify_dictionaries()
        self.lengths = self.rows["length"].to_numpy()
        self.response_lengths = self.rows["response_length"].to_numpy()
        self._open: dict[int, tuple[Any, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids (L,) int32, response (L,) bool) of one row."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index = int(index) % len(self)
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        tensors, offsets = self._shard(shard)
        start, end = offsets[index - self._first[shard]], offsets[index - self._first[shard] + 1]
        response = tensors.get_slice("response")[start:end]
        return tensors.get_slice("input_ids")[start:end], response.astype(bool)

    @property
    def refused(self) -> list[Refusal]:
        """The rows that were skipped, in the pool's order."""
        return [Refusal(**refusal) for refusal in read_json(self.folder / "refused.json")]

    def verify(self) -> None:
        """Check every shard now instead of when it is first read; a damaged one is a StoreError that names it."""
        for number in range(len(self.manifest["shards"])):
            self._shard(number)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files do not travel to worker processes

    def _read_rows(self, number: int) -> pa.Table:
        path = rows_path(self.folder, number)
        check_file(path, self.manifest["shards"][number]["rows_sha256"])
        return pq.read_table(path, read_dictionary=["path", "source"])  # a few names, repeated for millions of rows

    def _shard(self, number: int) -> tuple[Any, np.ndarray]:
        if number not in self._open:
            path = tokens_path(self.folder, number)
            check_file(path, self.manifest["shards"][number]["tokens_sha256"])
            try:
                tensors = cast(Any, safe_open(str(path), framework="numpy"))
                self._open[number] = (tensors, tensors.get_tensor("offsets"))
            except (SafetensorError, OSError) as error:
                raise StoreError(f"{path}: cannot be read ({error}). Run the encoding again.") from error
        return self._open[number]


def check_file(path: Path, expected: str) -> None:
    """Raise a StoreError if a file is missing or its bytes are not those that were written."""
    try:
        found = sha256_file(path)
    except OSError as error:
        raise StoreError(
            f"{path}: missing or unreadable ({error.strerror}). Run the encoding again; only this shard is made anew."
        ) from error
    if found != expected:
        raise StoreError(f"{path}: is damaged (checksum). Run the encoding again; only this shard is made anew.")
