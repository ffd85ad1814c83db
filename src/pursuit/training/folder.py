"""The folder of a training: what it was made from, and checkpoints of which one exists whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pursuit.batches import EncodedRows
from pursuit.errors import StoreError
from pursuit.files import sha256_file

KEPT, RECOVERY = "checkpoint", "recovery"  # folder names: part of the result, or only to resume from
WEIGHTS, RECORD = "weights.safetensors", "checkpoint.json"


def folder_name(kind: str, step: int) -> str:
    return f"{kind}-{step:04d}"


def remove_recovery(folder: Path, *, keep: Path | None = None) -> None:
    """Delete the checkpoints that were written only to resume from, but for `keep`."""
    for path in folder.glob(f"{RECOVERY}-*"):
        if path != keep:
            shutil.rmtree(path)


def has_digests(folder: Path, sha256: Mapping[str, str]) -> bool:
    """Whether these files are there with the digests written."""
    return all((folder / file).exists() and sha256_file(folder / file) == digest for file, digest in sha256.items())


def copy_weights(place: Path, model_parameters: Mapping[str, nn.Parameter], stored: Mapping[str, torch.Tensor]) -> None:
    """Copy stored weights into the trainable parameters; StoreError unless names and shapes agree."""
    check_same_parameters(place, model_parameters, stored)
    with torch.no_grad():
        for name, parameter in model_parameters.items():
            parameter.copy_(stored[name])


def check_same_parameters(
    place: Path, parameters: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]
) -> None:
    """StoreError when the stored tensors are not those of these parameters."""
    here, there = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (parameters, stored))
    if different := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        name = different[0]
        raise StoreError(
            f"{place}: made for other parameters than this model trains: {len(different)} differ, such as {name} "
            f"(stored {there.get(name, 'not at all')}, trained here {here.get(name, 'not at all')})."
        )


def rows_digest(encoded: EncodedRows, rows: Iterable[int]) -> str:
    """Digest of the tokens and masks of these rows, in this order."""
    digest = hashlib.sha256()
    for row in rows:
        tokens, response = encoded[int(row)]
        digest.update(np.asarray(tokens, dtype=np.int32).tobytes() + np.asarray(response, dtype=bool).tobytes())
    return digest.hexdigest()[:16]


def weights_digest(parameters: Mapping[str, nn.Parameter]) -> str:
    """Digest of names and bits of the trainable weights."""
    digest = hashlib.sha256()
    for name, parameter in parameters.items():
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


IN_WORDS = {"data": "other rows", "sampled_data": "other rows", "first_weights": "other weights to begin from"}


def made_from_other(folder: Path, what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> StoreError:
    """The error for a folder begun with something else; names everything that differs."""
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    told = [IN_WORDS.get(name, f"{name} = {before.get(name)!r}, not {now.get(name)!r}") for name in differing]
    return StoreError(
        f"{folder}: this {what} was begun with {'; '.join(told)}. Use another folder, or delete this one to start anew."
    )
