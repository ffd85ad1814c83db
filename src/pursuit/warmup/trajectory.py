"""The trajectory θ₁…θ_T of a warm-up run on disk: weights, Adam's moments and learning rates, one folder a checkpoint.

    folder/warmup.json                    settings of the run and the steps at which checkpoints are kept
    folder/checkpoint-0010/weights.safetensors    trainable parameters by name
                           moments.safetensors    <name>.exp_avg and <name>.exp_avg_sq
                           checkpoint.json        step, learning rates, losses, SHA-256 of both; written last

A checkpoint without its checkpoint.json, or with another digest, counts as not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pursuit.errors import StoreError
from pursuit.files import read_json, sha256_file, write_record, write_tensors
from pursuit.gradients.precondition import AdamState
from pursuit.models.trainable import trainable_parameters
from pursuit.training.folder import KEPT, RECORD, RECOVERY, WEIGHTS, copy_weights, folder_name, has_digests

MOMENTS, MANIFEST = "moments.safetensors", "warmup.json"


@dataclass(frozen=True)
class Checkpoint:
    """One point of the trajectory; the lists cover the steps since the previous kept checkpoint.

    Attributes:
        folder: where it lies.
        step: optimizer steps taken.
        learning_rates: the rate that each step used.
        losses: mean loss per response token of each step's batch, before the step.
        examples_seen: examples trained on so far, counted once an epoch.
        micro_batch_tokens: padded tokens that went through the model at once by then.
        betas, eps: of Adam.
        sha256: of each file.
    """

    folder: Path
    step: int
    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    examples_seen: int
    micro_batch_tokens: int
    betas: tuple[float, float]
    eps: float
    sha256: Mapping[str, str]

    @property
    def mean_learning_rate(self) -> float:
        """The checkpoint's weight in LESS and TAGCOS (arXiv 2402.04333), before normalising."""
        return float(np.mean(self.learning_rates))

    @property
    def loss(self) -> float:
        """Mean training loss since the previous kept checkpoint."""
        return float(np.mean(self.losses))

    def tensors(self, file: str) -> dict[str, torch.Tensor]:
        """All tensors of one file, on the CPU, after checking its digest; StoreError when missing or damaged."""
        path = self.folder / file
        try:
            if sha256_file(path) != self.sha256[file]:
                raise StoreError(
                    f"{path}: damaged (its SHA-256 is not the one written). `pursuit warmup --run` makes it again."
                )
            return load_file(path)
        except (OSError, SafetensorError, KeyError) as error:
            raise StoreError(f"{path}: cannot be read ({error}). `pursuit warmup --run` makes it again.") from error


class Trajectory:
    """The kept checkpoints of a finished warm-up, in order.

    Args:
        folder: the warm-up's folder.

    Raises:
        StoreError: no warm-up there, an unfinished one, or one with an unreadable record.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            raise StoreError(f"{self.folder}: no warm-up here ({MANIFEST} is missing). Run the warm-up first.")
        self.settings: dict[str, Any] = read_json(manifest)
        steps = self.settings["checkpoint_steps"]
        found = [read_checkpoint(self.folder / folder_name(KEPT, step)) for step in steps]
        self.checkpoints = [checkpoint for checkpoint in found if checkpoint is not None]
        if len(self.checkpoints) < len(steps):
            raise StoreError(
                f"{self.folder}: the warm-up is unfinished: {len(self.checkpoints)} of {len(steps)} checkpoints are "
                "here. Start it again; it goes on where it stopped."
            )

    def check(self) -> None:
        """StoreError if a file of a checkpoint is not the one that was written."""
        for checkpoint in self.checkpoints:
            for file in checkpoint.sha256:
                checkpoint.tensors(file)

    def __len__(self) -> int:
        """T, the number of checkpoints."""
        return len(self.checkpoints)

    def weights(self) -> np.ndarray:
        """(T,) float64, sum 1: mean learning rate since the previous checkpoint, normalised (TAGCOS, arXiv 2407.15235).

        Equal weights when every rate is zero (ours): the first step of a linear warm-up has rate 0.
        """
        rates = np.array([checkpoint.mean_learning_rate for checkpoint in self.checkpoints], dtype=np.float64)
        return rates / rates.sum() if rates.sum() > 0 else np.full(len(self), 1 / len(self))

    def load_into(self, model: nn.Module, t: int) -> None:
        """Copy the trainable weights of checkpoint `t` (0-based) into `model`, in place."""
        load_weights(model, self.checkpoints[t])

    def moments(self, t: int) -> AdamState:
        """Adam's moments at checkpoint `t` (0-based), on the CPU, in the data type they were trained in."""
        return read_moments(self.checkpoints[t])

    def verify(self) -> None:
        """Read every file and compare digests; StoreError names the first damaged one."""
        for checkpoint in self.checkpoints:
            for file in (WEIGHTS, MOMENTS):
                checkpoint.tensors(file)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into the model's trainable parameters; StoreError unless names and shapes agree."""
    copy_weights(checkpoint.folder / WEIGHTS, trainable_parameters(model), checkpoint.tensors(WEIGHTS))


def read_moments(checkpoint: Checkpoint) -> AdamState:
    stored = checkpoint.tensors(MOMENTS)
    first = {k.removesuffix(".exp_avg"): v for k, v in stored.items() if k.endswith(".exp_avg")}
    second = {k.removesuffix(".exp_avg_sq"): v for k, v in stored.items() if k.endswith(".exp_avg_sq")}
    return AdamState(first, second, checkpoint.step, checkpoint.betas, checkpoint.eps)


def write_checkpoint(checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor], moments: AdamState) -> Checkpoint:
    """Write a checkpoint so that it exists whole or not at all; returns it with the digests of its files."""
    folder = checkpoint.folder
    (folder / RECORD).unlink(missing_ok=True)  # a damaged one that is written anew counts as absent meanwhile
    write_tensors(folder / WEIGHTS, weights)
    write_tensors(
        folder / MOMENTS,
        {f"{name}.exp_avg": tensor for name, tensor in moments.exp_avg.items()}
        | {f"{name}.exp_avg_sq": tensor for name, tensor in moments.exp_avg_sq.items()},
    )
    digests = {file: sha256_file(folder / file) for file in (WEIGHTS, MOMENTS)}
    record = asdict(checkpoint) | {"sha256": digests}
    del record["folder"]
    derived = {"mean_learning_rate": checkpoint.mean_learning_rate, "loss": checkpoint.loss}
    write_record(folder / RECORD, record | derived)
    return Checkpoint(**record, folder=folder)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint whose record stands in `folder`, or None when it was not written to the end."""
    if not (folder / RECORD).exists():
        return None
    record = read_json(folder / RECORD)
    try:
        return Checkpoint(
            folder=folder, step=record["step"], learning_rates=tuple(record["learning_rates"]),
            losses=tuple(record["losses"]), examples_seen=record["examples_seen"],
            micro_batch_tokens=record["micro_batch_tokens"], betas=tuple(record["betas"]), eps=record["eps"],
            sha256=record["sha256"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise StoreError(f"{folder / RECORD}: not a checkpoint's record ({error}). Delete the folder.") from error


def is_whole(checkpoint: Checkpoint | None) -> bool:
    """Whether both files are there with the digests written."""
    return checkpoint is not None and has_digests(checkpoint.folder, checkpoint.sha256)


def find_resume_point(folder: Path, kept_steps: Sequence[int]) -> Checkpoint | None:
    """The last whole checkpoint, kept or for recovery, before which no kept one is missing or damaged."""
    point = None
    for step in kept_steps:
        checkpoint = _read_or_none(folder / folder_name(KEPT, step))
        if not is_whole(checkpoint):
            break
        point = checkpoint
    first_missing = min((s for s in kept_steps if point is None or s > point.step), default=None)
    for path in sorted(folder.glob(f"{RECOVERY}-*")):
        found = _read_or_none(path)
        if found is None or first_missing is None or found.step > first_missing:
            continue
        if (point is None or found.step > point.step) and is_whole(found):
            point = found
    return point


def _read_or_none(folder: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(folder)
    except StoreError:
        return None
