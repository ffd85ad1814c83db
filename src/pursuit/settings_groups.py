"""The parts of a run's settings: a new adapter, the warm-up, the features."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pursuit.recipes import Lora, Preconditioner, ProjectionKind, Recipe, StoredType, WarmUp


def split_commas(value: Any) -> Any:
    """`10,20` as well as a list."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not any(isinstance(item, str) for item in items):
        return value
    return [part.strip() for item in items for part in str(item).split(",") if part.strip()]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class LoraSettings(Group):
    """A new LoRA adapter, whose weights are the coordinates of the gradients."""

    rank: int = Field(Lora.rank, ge=1, description="Rank r of the adapter.")
    alpha: int = Field(Lora.alpha, ge=1, description="The update is scaled by alpha / rank.")
    dropout: float = Field(Lora.dropout, ge=0, lt=1, description="Dropout on the adapter's input, while it is trained.")
    targets: list[str] | None = Field(None, description="Layers to adapt; the attention projections if not given.")


class WarmupSettings(Group):
    """The warm-up run whose checkpoints are the trajectory."""

    checkpoint_steps: list[int] | None = Field(
        list(WarmUp.checkpoint_steps or ()), description="Optimizer steps at which a checkpoint is kept; the run stops "
        "after the last. In YAML, null keeps one an epoch, as LESS does.",
    )  # fmt: skip
    epochs: int = Field(WarmUp.epochs, ge=1, description="Length of the run that the schedule spans.")
    sample: float | int = Field(
        WarmUp.sample, gt=0, description="Share of the pool (0.05; 1.0 is all of it) or number of rows (2000)."
    )
    learning_rate: float = Field(WarmUp.learning_rate, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Learning-rate schedule."
    )
    warmup_ratio: float = Field(WarmUp.warmup_ratio, ge=0, lt=1, description="Share of the run in which it rises.")
    weight_decay: float = Field(WarmUp.weight_decay, ge=0, description="AdamW's weight decay.")
    betas: tuple[float, float] = Field(WarmUp.betas, description="AdamW's betas.")
    eps: float = Field(WarmUp.eps, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(WarmUp.max_grad_norm, ge=0, description="Gradient clipping; 0 does not clip.")
    batch_size: int = Field(WarmUp.batch_size, ge=1, description="Examples an optimizer step.")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="Padded tokens in memory at once; 2048 on a CPU and 16384 on a GPU if not given."
    )  # fmt: skip
    seed: int | None = Field(None, description="Of sample, order and dropout; --seed at first if not given.")

    @field_validator("sample")
    @classmethod
    def _rows(cls, value: float | int) -> float | int:
        """A flag's 2000 comes as 2000.0."""
        return int(value) if value > 1 and value == int(value) else value

    @field_validator("checkpoint_steps", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return split_commas(value)


class FeatureSettings(Group):
    """How a gradient becomes a feature."""

    dimension: int = Field(Recipe.dimension, ge=1, description="d, numbers kept of a gradient.")
    projection: ProjectionKind = Field(
        Recipe.projection,
        description="sparse (fast), rademacher (dense, as published, slow), tensorsketch (for full weights: "
        "gradients of large matrices are never formed), factored (the same, faster and far noisier), none (all "
        "coordinates).",
    )
    directions: float = Field(
        0.0, ge=0, le=0.5, description="Share of d for the directions in which some rows of the pool, and of a target "
        "that the run begins with, are longest (0.25): with a target a smaller d tells as much. 0: a projection "
        "alone, as published.",
    )  # fmt: skip
    preconditioner: Preconditioner = Field(
        Recipe.preconditioner,
        description="adam (the step Adam would take), less (as in LESS' released code), sgd (the gradient), sign.",
    )
    momentum: bool | None = Field(
        None, description="Keep the momentum term, which all examples share; if not said, less keeps it, as in its "
        "released code, and adam does not."
    )  # fmt: skip
    target_preconditioner: Literal["auto", "sgd", "same"] = Field(
        "auto", description="Of the target's rows: sgd (their gradient, as in LESS), the same as the pool's, or auto: "
        "the same for gtp and omp, which follow the target, sgd for the others."
    )  # fmt: skip
    dtype: StoredType = Field(
        Recipe.dtype, description="Of the stored rows; int8 (a byte a number) takes half the room of float16, bits "
        "(signs alone) a sixteenth.",
    )  # fmt: skip
    batch_tokens: int | None = Field(
        None, ge=1, description="Padded tokens a batch: bounds the memory; 2048 on a CPU and 16384 on a GPU if not "
        "given, halved where memory runs out. inspect --autotune finds the fastest.",
    )  # fmt: skip
    shard_rows: int | None = Field(
        None, ge=1, description="Rows a shard, the unit of work; 2048 to 8192 by the pool's rows if not given."
    )
    seed: int | None = Field(None, description="Of the projection; --seed at first if not given.")

    @model_validator(mode="after")
    def _directions_need_a_sketch(self) -> Self:
        if self.directions and self.projection in ("none", "rademacher"):
            raise ValueError(f"directions are kept beside a sketch, not with {self.projection}; take sparse")
        if 0 < self.directions * self.dimension < 1:
            raise ValueError(f"directions {self.directions} of {self.dimension} numbers are none; take a larger share")
        return self

    @model_validator(mode="after")
    def _signs_need_gradients(self) -> Self:
        if self.projection in ("factored", "tensorsketch") and self.preconditioner == "sign":
            raise ValueError(f"{self.projection} never forms the gradient, so its signs are not known; take sparse")
        return self
