"""Finished parts of an evaluation on disk: each is made once for the same model, rows and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from pursuit.errors import StoreError
from pursuit.files import atomic_path, fingerprint, read_json, write_record
from pursuit.progress import progress

FOLDER = "parts"
# of a configuration: what says nothing about the function
NO_MATTER = (
    "_name_or_path", "architectures", "transformers_version", "use_cache", "dtype", "base_model_name_or_path",
    "inference_mode",
)  # fmt: skip
CODE_VERSION = 1  # raised when the same model and rows would give other scores


class Parts:
    """Keeps tables and JSON values by name in `out/parts`; without a folder everything is computed.

    Args:
        out: the evaluation's folder, or None.
        made_from: what every part depends on, JSON-able.
    """

    def __init__(self, out: Path | None, made_from: Mapping[str, Any]) -> None:
        self.folder, self.made_from = None if out is None else out / FOLDER, {"code": CODE_VERSION, **made_from}

    def table(self, name: str, settings: Mapping[str, Any], compute: Callable[[], pa.Table]) -> pa.Table:
        """The table kept under this name if it was made from the same, otherwise a new one; damaged ones are remade."""
        if self.folder is None:
            return compute()
        path, wanted = self.folder / f"{name}.parquet", self._fingerprint(name, settings)
        try:
            kept = pq.read_table(path)
            if (kept.schema.metadata or {}).get(b"pursuit") == wanted.encode():
                return kept
        except (OSError, pa.ArrowException):
            pass
        made = compute().replace_schema_metadata({"pursuit": wanted})
        with atomic_path(path) as partial:
            pq.write_table(made, partial)
        return made

    def value(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """As `table` for a JSON-able value."""
        if self.folder is None:
            return compute()
        path, wanted = self.folder / f"{name}.json", self._fingerprint(name, settings)
        try:
            kept = read_json(path)
            if kept["made_from"] == wanted:
                return kept["value"]
        except (StoreError, KeyError, TypeError):
            pass
        made = compute()
        write_record(path, {"made_from": wanted, "value": made})
        return made

    def _fingerprint(self, name: str, settings: Mapping[str, Any]) -> str:
        return fingerprint({**self.made_from, "part": name, "settings": dict(settings)})


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights as they are in memory (name, kind, shape, bytes) and of its configuration."""
    state = dict(sorted(model.state_dict().items()))
    digest = hashlib.sha256(_configuration(model).encode())
    with progress("reading the weights", sum(tensor.nbytes for tensor in state.values()) / 1e6, "MB") as advance:
        for name, tensor in state.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
            advance(tensor.nbytes / 1e6)
    return digest.hexdigest()


def _configuration(model: nn.Module) -> str:
    """Of the model and its adapters (an adapter's alpha is nowhere in its weights), as JSON."""
    configurations = {"model": getattr(model, "config", None), **getattr(model, "peft_config", {})}
    described = {
        name: {key: value for key, value in found.to_dict().items() if key not in NO_MATTER}
        for name, found in configurations.items()
        if hasattr(found, "to_dict")
    }

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else str(value)

    return json.dumps(described, sort_keys=True, default=plain)
