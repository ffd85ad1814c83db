"""One shard's file: written whole with digests, or beside it what is finished of it, to go on from after a kill."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pursuit.files import tensor_metadata, write_tensors
from pursuit.pace import Pace

SMALL = ("gradient_norms", "losses", "norms")  # a number a row
COLUMNS = ("features", *SMALL)  # of every shard; codes have `scales` beside them
DONE, LIMITS = "done", "limits"  # of an unfinished shard, see `UnfinishedShard`


def write_shard(path: Path, tensors: dict[str, Tensor], provenance_digest: str) -> None:
    """Write one shard with the digest of its content and of the settings that made it."""
    digest = _content_digest(tensors)
    write_tensors(path, tensors, {"content": digest, "provenance": provenance_digest})


def shard_is_whole(path: Path, provenance_digest: str) -> bool:
    """Whether a shard stands, undamaged, and was made with these settings."""
    return _whole(path, provenance_digest) is not None


def _whole(path: Path, provenance_digest: str) -> dict[str, Tensor] | None:
    """What was written, if all of it is there."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = tensor_metadata(handle)
            if metadata.get("provenance") != provenance_digest:
                return None
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None
    whole = tensors.keys() >= set(COLUMNS) and metadata.get("content") == _content_digest(tensors)
    return tensors if whole else None


def _content_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all tensors' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class UnfinishedShard:
    """The rows of a shard that are made, kept beside it now and then.

    Args:
        path: of the shard, when it is finished.
        tensors: of all its rows, with room for those that are not made; what an earlier start kept is put in.
        provenance_digest: of the settings; what others made is left out.

    Attributes:
        done: (n,) bool, the rows that are made.
        limits: padded tokens of a batch, a smaller number for each time that memory did not suffice.
    """

    def __init__(self, path: Path, tensors: dict[str, Tensor], provenance_digest: str) -> None:
        self.path, self.tensors, self._digest = unfinished_path(path), tensors, provenance_digest
        self.done = torch.zeros(len(tensors["losses"]), dtype=torch.bool)
        self.limits: list[int] = []
        self._pace = Pace()
        found = _whole(self.path, provenance_digest) or {}
        limits = found.pop(LIMITS, torch.empty(0))
        everything = {**tensors, DONE: self.done}
        if {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in everything.items()}:
            for name, tensor in everything.items():
                tensor.copy_(found[name])
            self.limits = limits.tolist()

    def made(self, places: Tensor) -> None:
        """Told that these rows are in the tensors now; writes them down if it is time to."""
        self.done[places] = True
        if self._pace.due():
            with self._pace.saving():
                limits = torch.tensor(self.limits, dtype=torch.int64)
                write_shard(self.path, {**self.tensors, DONE: self.done, LIMITS: limits}, self._digest)


def unfinished_path(path: Path) -> Path:
    """Where the finished rows of a shard are kept until it is whole."""
    return path.with_name(f"{path.stem}.unfinished{path.suffix}")


def rows_made(path: Path) -> int:
    """How many rows of a shard were kept by the last start, as far as can be told without reading them all."""
    try:
        with safe_open(unfinished_path(path), framework="pt") as handle:
            return int(handle.get_tensor(DONE).sum())
    except (OSError, SafetensorError, ValueError):
        return 0
