"""What a run will take, as plain numbers: what was timed, what it comes to, and what is proposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pursuit.recipes import StoredType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Timing:
    """A few batches, timed.

    Attributes:
        seconds_per_batch, seconds_per_token: of a batch whatever is in it (0 on a CPU), and of each padded token.
        seconds, batches, tokens: spent on it, how many, padded tokens in all.
        largest: padded tokens of the largest of them.
        before: bytes in use before it; None where they cannot be told.
        peak: bytes in use at the worst moment.
    """

    seconds_per_batch: float
    seconds_per_token: float
    seconds: float
    batches: int
    tokens: int
    largest: int
    before: int | None
    peak: int | None

    def predicted(self, sizes: NDArray[np.int64]) -> float:
        """Seconds of batches of so many padded tokens."""
        return len(sizes) * self.seconds_per_batch + float(sizes.sum()) * self.seconds_per_token


@dataclass(frozen=True)
class Measurement:
    """Real work on a few batches of this pool: what was timed, and on what.

    Attributes:
        device: in words.
        features, warmup: None when the work failed, as `problem` says.
        dense_batch_seconds: of the dense projection, timed on its own (0 for the others).
    """

    device: str
    features: Timing | None
    warmup: Timing | None
    dense_batch_seconds: float = 0.0
    problem: str | None = None


@dataclass(frozen=True)
class Memory:
    """Peak bytes of a stage, and in words how they were found."""

    bytes: int
    how: str


@dataclass(frozen=True)
class Prediction:
    """What a selection by gradients would take.

    Attributes:
        parameters: P, coordinates of a gradient.
        checkpoints: T. dimension: d of a stored row.
        store_bytes: the feature store, N × T × (d × bytes + 12); `target_store_bytes` the target's.
        directions_bytes: the directions that are kept exactly, and meanwhile the rows that they are learnt from.
        trajectory_bytes: weights and two moments at every checkpoint.
        free_bytes: on the disk where the run would lie.
        warmup_steps, warmup_examples: optimizer steps, and examples in them.
        warmup_tokens: padded tokens through the model in the warm-up; `feature_tokens`, `target_tokens` and
            `directions_tokens` at each checkpoint.
        feature_operations: floating-point operations of the pool's features, by counting (`inspection.costs`).
        sketched_operations: the same by `tensorsketch`; None where gradients are projected otherwise than by `sparse`.
        memory: peak of the stage that takes most.
        available_memory: of the device; None unknown.
        measurement: None if nothing was measured, and then no seconds either.
    """

    parameters: int
    checkpoints: int
    dimension: int
    store_bytes: int
    target_store_bytes: int
    trajectory_bytes: int
    free_bytes: int
    warmup_steps: int
    warmup_examples: int
    warmup_tokens: int
    feature_tokens: int
    target_tokens: int
    feature_operations: float
    memory: Memory
    sketched_operations: float | None = None
    available_memory: int | None = None
    measurement: Measurement | None = None
    warmup_seconds: float | None = None
    feature_seconds: float | None = None
    target_seconds: float | None = None
    directions_tokens: int = 0
    directions_bytes: int = 0
    directions_seconds: float | None = 0.0

    @property
    def disk_bytes(self) -> int:
        """All that the run writes, but for tokens."""
        return self.store_bytes + self.target_store_bytes + self.directions_bytes + self.trajectory_bytes

    @property
    def hours(self) -> float | None:
        """Warm-up and all features together; None if not measured."""
        parts = (self.warmup_seconds, self.feature_seconds, self.target_seconds, self.directions_seconds)
        known = [part for part in parts if part is not None]
        return sum(known) / 3600 if len(known) == len(parts) else None


@dataclass(frozen=True)
class Proposal:
    """What was found, and what follows from it.

    Attributes:
        rows: on which it was measured.
        agreement: by d, the correlation of the rows' inner products between two seeds.
        code_error: by stored type, its mean square error on inner products, as a share of the projection's.
        rates: by padded tokens a batch, tokens a second.
        dimension, dtype, batch_tokens: proposed.
        needs_new_run: whether the inspected run already has something of another dimension or type, and keeps it.
    """

    rows: int
    agreement: dict[int, float]
    code_error: dict[StoredType, float]
    rates: dict[int, float]
    dimension: int
    dtype: StoredType
    batch_tokens: int
    needs_new_run: bool = False

    def settings(self) -> dict[str, int | str]:
        """As the group `features` takes them."""
        return {"dimension": self.dimension, "dtype": self.dtype, "batch_tokens": self.batch_tokens}
