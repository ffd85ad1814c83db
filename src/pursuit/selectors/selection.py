"""What a selector returns: which rows, in which order, with which weights, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pursuit.errors import SelectionError, StoreError
from pursuit.files import read_json, sha256_file, write_record, write_tensors

TENSORS, DESCRIPTION = "selection.safetensors", "selection.json"
FORMAT = 1


@dataclass(frozen=True)
class Selection:
    """A subset of a pool of `num_rows` examples.

    Attributes:
        indices: (k,) int64 rows of the pool, unique, in order of choice: the first would be kept the longest.
        weights: (k,) float64, the weight of each chosen row; 1 where the method has none.
        method: name of the method.
        num_rows: size of the pool, N.
        parameters: the method's settings, JSON-able.
        columns: more (k,) numbers about the chosen rows, by name: `score` and `cluster` where the method has them.
        diagnostics: JSON-able facts about the choice as a whole.

    Raises:
        SelectionError: indices out of range or repeated, or lengths that differ.
    """

    indices: np.ndarray
    weights: np.ndarray
    method: str
    num_rows: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", np.asarray(self.indices, dtype=np.int64))
        object.__setattr__(self, "weights", np.asarray(self.weights, dtype=np.float64))
        object.__setattr__(self, "columns", {name: np.asarray(values) for name, values in self.columns.items()})
        for name, values in {"indices": self.indices, "weights": self.weights, **self.columns}.items():
            if values.shape != (len(self),):
                raise SelectionError(
                    f"selection: {name} is {values.shape}, not ({len(self)},): one for each chosen row."
                )
        if len(self) and not (self.indices.min() >= 0 and self.indices.max() < self.num_rows):
            raise SelectionError(f"selection: indices must lie in 0 … {self.num_rows - 1}.")
        if len(np.unique(self.indices)) != len(self):
            raise SelectionError("selection: a row was chosen twice.")

    def __len__(self) -> int:
        return self.indices.size

    @property
    def scores(self) -> np.ndarray | None:
        """(k,) float64, the method's score of each chosen row, if it has one."""
        return self.columns.get("score")

    @property
    def clusters(self) -> np.ndarray | None:
        """(k,) int64, the cluster of each chosen row, if the method has clusters."""
        return self.columns.get("cluster")

    def save(self, folder: Path | str) -> None:
        """Write `selection.safetensors` and `selection.json`; the second makes the first valid, and is written last."""
        import torch

        folder = Path(folder)
        arrays = {"indices": self.indices, "weights": self.weights}
        arrays |= {f"column.{name}": values for name, values in self.columns.items()}
        write_tensors(folder / TENSORS, {name: torch.from_numpy(values.copy()) for name, values in arrays.items()})
        description = {
            "format": FORMAT,
            "method": self.method,
            "num_rows": self.num_rows,
            "chosen": len(self),
            "parameters": dict(self.parameters),
            "diagnostics": dict(self.diagnostics),
            "tensors_sha256": sha256_file(folder / TENSORS),
        }
        write_record(folder / DESCRIPTION, description)

    @classmethod
    def load(cls, folder: Path | str) -> Selection:
        """Read what `save` wrote.

        Raises:
            StoreError: a file is missing or damaged, or the two do not belong together.
        """
        from safetensors.numpy import load_file

        folder = Path(folder)
        description = read_json(folder / DESCRIPTION)
        try:
            if sha256_file(folder / TENSORS) != description["tensors_sha256"]:
                raise StoreError(f"{folder / TENSORS}: does not belong to {DESCRIPTION} beside it. Select again.")
            arrays = load_file(folder / TENSORS)
            return cls(
                indices=arrays["indices"],
                weights=arrays["weights"],
                method=description["method"],
                num_rows=description["num_rows"],
                parameters=description["parameters"],
                columns={name[7:]: values for name, values in arrays.items() if name.startswith("column.")},
                diagnostics=description["diagnostics"],
            )
        except (OSError, KeyError, TypeError) as error:
            raise StoreError(f"{folder}: is not a whole selection ({error!r}). Select again.") from error
