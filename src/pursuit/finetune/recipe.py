"""How a model is trained on chosen rows: plain values, so that reading them need not wait for torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pursuit.errors import SettingsError
from pursuit.recipes import SCHEDULES

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")

# the settings of a run that a training uses: how rows are read, the model, and what of it is trained
ROWS = ("fields", "source_field", "on_bad_row", "max_length", "chat_template", "train_on")
MODEL = ("model", "revision", "trust_remote_code", "dtype", "device", "attention", "load_in_4bit")
TRAINED = ("adapter", "weights", "lora")
USED = (*ROWS, *MODEL, *TRAINED, "pool", "seed")


@dataclass(frozen=True)
class FineTune:
    """Settings of a fine-tuning. Defaults: those with which LESS (arXiv 2402.04333) trains on what it selected.

    Attributes:
        epochs: how often each row is trained on.
        max_steps: optimizer steps instead of epochs: the same number for any subset, by going round it as often as
            needed.
        batch_size: examples an optimizer step; the last batch of an epoch may be smaller.
        micro_batch_tokens: padded tokens that go through the model at once (ours); None for 2,048 on a CPU and 16,384
            on a GPU. Halved when memory runs out, which changes the gradient by rounding only (and the dropout masks).
        learning_rate, schedule, warmup_ratio, weight_decay, max_grad_norm: of the optimizer; the schedule is one of
            linear, cosine, constant, constant_with_warmup and spans the whole training. 0 does not clip.
        betas, eps: of Adam's kin; others do not use them.
        optimizer: transformers' name of it (`optim` of TrainingArguments): adamw_torch, adafactor, sgd, lion_32bit, …
        weighted: multiply each row's loss by its weight, scaled to mean 1 over the rows trained on.
        precision: float32 or bfloat16, in which the model computes; auto is bfloat16 for a model loaded in bfloat16,
            float32 otherwise. The trained weights and the optimizer's state are float32 always (ours).
        recovery_seconds: at least this long between checkpoints, which are written only to go on from and never change
            the result.
        seed: of the order of the rows and of dropout.

    Raises:
        SettingsError: a value that cannot be; it is named.
    """

    epochs: int = 4
    max_steps: int | None = None
    batch_size: int = 128
    micro_batch_tokens: int | None = None
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    weighted: bool = False
    precision: Precision = "auto"
    recovery_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules: list[tuple[str, bool, str]] = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1, or None to go by epochs"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("micro_batch_tokens", self.micro_batch_tokens is None or self.micro_batch_tokens >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("schedule", self.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            ("eps", self.eps > 0, "above 0"),
            ("max_grad_norm", self.max_grad_norm >= 0, "at least 0 (0 does not clip)"),
            ("precision", self.precision in PRECISIONS, "one of " + ", ".join(PRECISIONS)),
        ]  # fmt: skip
        for name, holds, wanted in rules:
            if not holds:
                raise SettingsError(f"fine-tuning {name} = {getattr(self, name)!r}: must be {wanted}.")
