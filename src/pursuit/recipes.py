"""How adapters, warm-ups and features are made: plain values with the papers' defaults.

They stand apart from the code that uses them so that reading settings, or `--help`, need not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pursuit.errors import SettingsError

Preconditioner = Literal["sgd", "sign", "less", "adam"]
ProjectionKind = Literal["sparse", "rademacher", "tensorsketch", "factored", "none"]
StoredType = Literal["float16", "bfloat16", "float32", "int8", "bits"]
SHORTEST_SHARD, USUAL_SHARD, LONGEST_SHARD, SHARDS = 512, 2048, 8192, 32
SHARD_BYTES = 1 << 28
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class Lora:
    """A new LoRA adapter. The defaults are those of LESS (arXiv 2402.04333).

    Attributes:
        rank: r, columns of A and B.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input, while training only.
        targets: module names (suffixes) to adapt; None finds the attention projections, see `lora_targets`.
    """

    rank: int = 128
    alpha: int = 512
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class WarmUp:
    """Settings of a warm-up. Defaults: TAGCOS's early stop (arXiv 2407.15235, released code) of LESS's run
    (arXiv 2402.04333).

    Attributes:
        checkpoint_steps: optimizer steps after which a checkpoint is kept; training stops after the last. None keeps
            one at the end of each epoch (LESS).
        epochs: length of the planned run, which the learning-rate schedule spans even when training stops earlier.
            When the last checkpoint lies beyond it, the plan is longer by whole epochs (ours).
        sample: a share of the pool (float, 0 to 1) or a number of rows (int). At least one full batch is taken,
            or the whole pool if it is smaller (ours).
        learning_rate, schedule, warmup_ratio, weight_decay, betas, eps, max_grad_norm: of AdamW and its schedule;
            one of linear, cosine, constant, constant_with_warmup. Gradients are clipped to `max_grad_norm`
            (1, the Trainer's default, as in the papers' code; 0 does not clip).
        batch_size: examples per optimizer step. The loss is the mean over the response tokens of the whole batch; the
            last batch of an epoch may be smaller.
        micro_batch_tokens: padded tokens that go through the model at once (ours); halved when memory runs out,
            which changes the gradient by rounding only (and the dropout masks).
        recovery_seconds: at least this long between checkpoints written only to resume from, deleted afterwards
            (ours). They never change the result.
        seed: of the sample, the order of the rows and dropout.
    """

    checkpoint_steps: tuple[int, ...] | None = (10, 20, 30)
    epochs: int = 4
    sample: float | int = 0.05
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    batch_size: int = 128
    micro_batch_tokens: int = 2048
    recovery_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        steps = self.checkpoint_steps
        share = isinstance(self.sample, float)
        rules: list[tuple[str, bool, str]] = [
            ("checkpoint_steps", steps is None or (len(steps) > 0 and all(a < b for a, b in pairwise((0, *steps)))),
             "rising step numbers from 1, or None for one checkpoint an epoch"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("sample", 0 < self.sample <= 1 if share else self.sample >= 1, "a share in (0, 1] or a number of rows"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("schedule", self.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            ("eps", self.eps > 0, "above 0"),
            ("max_grad_norm", self.max_grad_norm >= 0, "at least 0 (0 does not clip)"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("micro_batch_tokens", self.micro_batch_tokens >= 1, "at least 1"),
        ]  # fmt: skip
        for name, holds, wanted in rules:
            if not holds:
                raise SettingsError(f"warm-up {name} = {getattr(self, name)!r}: must be {wanted}.")


@dataclass(frozen=True)
class Recipe:
    """How a gradient becomes a feature (LESS, arXiv 2402.04333, section 3).

    Attributes:
        dimension: d of the projection (ignored by "none").
        dtype: of the stored rows, see `pursuit.store.codecs`.
        batch_tokens: padded tokens a batch, which bounds the memory of the pass.
        shard_rows: rows of a shard, within which batches are sorted by length; None: see `rows_a_shard`.
        directions: file of the directions that are kept exactly, see `pursuit.gradients.directions`; None: a
            projection alone.
    """

    dimension: int = 8192
    projection: ProjectionKind = "sparse"
    preconditioner: Preconditioner = "adam"
    momentum: bool = False
    seed: int = 0
    dtype: StoredType = "float16"
    batch_tokens: int = 2048
    shard_rows: int | None = None
    directions: str | None = None

    def rows_a_shard(self, rows: int) -> int:
        """Rows of a shard, of a pool of so many [ours].

        The more, the less is padded, as a batch's rows are taken from one shard, and the better a GPU's large batches
        are filled; the fewer, the more evenly several machines share them. So 2,048 rows, or with 32 shards or more a
        pool up to 8,192, of at most 256 MiB (but never fewer than 512 rows); a power of two.
        """
        if self.shard_rows is not None:
            return self.shard_rows
        if self.projection == "none":  # a row may be of any size
            return SHORTEST_SHARD
        wanted = min(max(rows // SHARDS, USUAL_SHARD), LONGEST_SHARD)
        most = max(SHORTEST_SHARD, min(wanted, SHARD_BYTES // (4 * self.dimension)))
        return 1 << (most.bit_length() - 1)
