"""What all batch selectors have in common: checked settings, one call that selects, a state that can be stored."""

from __future__ import annotations

import difflib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from torch import Tensor, nn
from torch import distributed as dist

from pursuit.errors import DataError, SelectionError, SettingsError, StoreError
from pursuit.online.batch import check_batch, kept_count, take
from pursuit.online.choice import Choice
from pursuit.online.flops import ModelFlops, model_flops
from pursuit.online.scoring import EXAMPLE_IDS
from pursuit.progress import say
from pursuit.selectors.base import accepted

Schedule = Literal["constant", "warmup", "anneal"] | Callable[[float], float]


class BatchSelector(BaseModel, ABC):
    """Chooses, at each step of a training, which candidates of a batch are trained on.

    In any PyTorch loop:

        keep = selector(model, batch)              # int64 indices, ascending
        model(**take(batch, keep)).loss.backward()
        selector.observe(model)                    # before the optimizer's step
        optimizer.step(); optimizer.zero_grad()

    All randomness is a function of (seed, process, number of the call), so training's own random state is never touched
    and a resumed run chooses what the uninterrupted one would have.

    Raises:
        SettingsError: an unknown setting or a wrong value, with what would be accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: ClassVar[str]
    paper: ClassVar[str]

    prune: float = Field(0.0, ge=0, lt=1, description="α, share of the candidates that is not trained on.")
    schedule: Schedule = Field(
        "constant",
        description="How α goes over the training: warmup rises from 0 to it over the first steps, anneal falls to 0 "
        "over the last; a function is given the share of the training that is done (0 … 1) and returns α.",
    )
    ramp: float = Field(0.1, gt=0, le=1, description="Share of the training over which warmup rises and anneal falls.")
    total_steps: int | None = Field(
        None, ge=1, description="Calls in the whole training, for schedules; the trainer mix-in knows them itself."
    )
    seed: int = Field(0, ge=0, description="Of everything random in the choice.")

    _calls: int = PrivateAttr(0)
    _done: tuple[int, int] | None = PrivateAttr(None)  # (steps done, steps in all), told by a trainer
    _last: Choice | None = PrivateAttr(None)
    _at_once: int | None = PrivateAttr(None)  # of this call
    _said_dropped: bool = PrivateAttr(False)
    _flops: tuple[int, ModelFlops] | None = PrivateAttr(None)  # (id of the model, its counts)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            # a setting of several types has a problem with each of them, told in the same words
            told = dict.fromkeys(_explain(type(self), problem) for problem in error.errors())
            raise SettingsError("; ".join(told)) from None

    @property
    def last(self) -> Choice | None:
        """What the last call chose and why; None before the first."""
        return self._last

    @property
    def needs_ids(self) -> bool:
        """Whether batches must name their examples: `example_ids`, (B,) whole numbers."""
        return False

    @property
    def observes(self) -> bool:
        """Whether `observe` has anything to learn from."""
        return False

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], *, at_once: int | None = None) -> Tensor:
        """Choose which candidates to train on.

        Args:
            model: as it is trained; wrapped by DDP, PEFT or torch.compile or not. Its modes, gradients and buffers, and
                all random states, are the same afterwards.
            batch: `input_ids` and `labels` (B, T), `attention_mask` where there is padding, and whatever else the model
                takes; `example_ids` (B,) for selectors with `needs_ids`. One example a row.
            at_once: padded tokens that go through the model at once where candidates are scored, those of like length
                together; all of the batch, as it is, if not given. Changes scores by rounding only.

        Returns:
            (n,) int64 indices in ascending order, on the batch's device; n = (1 − α) B rounded half up, at least 1, and
            fewer where fewer candidates can be chosen. `last` has the order of choice.

        Raises:
            SelectionError: a packed batch, or no candidate with a finite loss.
            DataError: a batch without ids or labels, or without `example_ids` where they are needed.
            ModelError: a model whose head cannot be read.
        """
        begun = time.perf_counter()
        size = check_batch(batch)
        rate = self.rate()
        ids = self._ids(batch, size)
        self._at_once = at_once
        choice = self._choose(model, batch, rate, ids) if self._drops(size, rate) else Choice(np.arange(size))
        choice.size = size
        self._count_flops(model, batch, choice)
        self._calls += 1
        self._last = choice
        choice.seconds = time.perf_counter() - begun
        return torch.from_numpy(choice.indices).to(batch["input_ids"].device)

    def _drops(self, size: int, rate: float) -> bool:
        """Whether any of the candidates is to be left out; where none is, the model is not even run."""
        return kept_count(size, rate) < size

    @abstractmethod
    def _choose(self, model: nn.Module, batch: Mapping[str, Any], rate: float, ids: np.ndarray | None) -> Choice:
        """Choose part of the candidates; `ids` (B,) int64 where `needs_ids`."""

    def observe(self, model: nn.Module) -> None:
        """Learn from the gradient of the chosen; call it once an optimizer step, between backward and the step.

        With several processes all must call it.
        """

    def rate(self) -> float:
        """α at this call.

        Raises:
            SettingsError: a schedule without a known length of the training, or one that returns no share.
        """
        if self.schedule == "constant" or (self.prune == 0 and not callable(self.schedule)):
            return self.prune
        share = self._share()
        if callable(self.schedule):
            rate = float(self.schedule(share))
            if not 0 <= rate < 1:
                raise SettingsError(f"{self.name}: the schedule returned {rate} at {share:.3f}, not 0 ≤ α < 1.")
            return rate
        return self.prune * min(1.0, (share if self.schedule == "warmup" else 1 - share) / self.ramp)

    def _share(self, wanted_by: str = "its schedule") -> float:
        """Share of the training that is done, 0 … 1."""
        done, total = self._done or (self._calls, self.total_steps)
        if total is None:
            raise SettingsError(f"{self.name}: {wanted_by} needs total_steps, the calls in the whole training.")
        return min(1.0, done / total)

    def at(self, step: int, total: int) -> None:
        """Tell which of the training's optimizer steps the next calls belong to, for schedules."""
        self._done = (step, total)

    def reset(self) -> None:
        """Forget everything, as before the first call."""
        self._calls, self._done, self._last = 0, None, None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold so that the next calls choose the same."""
        return {"calls": torch.tensor(self._calls)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Raises:
            StoreError: not the state of a batch selector.
        """
        if "calls" not in state:
            raise StoreError("this is not the state of a batch selector.")
        self._calls = int(state["calls"])

    def _generator(self) -> np.random.Generator:
        """A fresh generator: a function of the seed, the process and the number of the call."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return np.random.default_rng([self.seed, rank, self._calls])

    def _ids(self, batch: Mapping[str, Any], size: int) -> np.ndarray | None:
        if not self.needs_ids:
            return None
        ids = batch.get(EXAMPLE_IDS)
        if ids is None or len(ids) != size:
            raise DataError(
                f"{self.name} remembers examples, so the batch needs {EXAMPLE_IDS!r}: one whole number a candidate, "
                "the same each time the example comes by."
            )
        return np.asarray(torch.as_tensor(ids).cpu(), dtype=np.int64)

    def _note_dropped(self, dropped: int, losses: np.ndarray) -> None:
        """Say once that candidates were left out, and refuse a batch in which nothing else is left to learn from.

        `losses` are of all candidates, NaN for those without a label.
        """
        if not dropped:
            return
        size = len(losses)
        if dropped == np.count_nonzero(~np.isnan(losses)):
            raise SelectionError(
                f"{self.name}: the loss of every candidate of batch {self._calls + 1} that has a label is NaN or "
                "infinite: the training has diverged. Lower the learning rate, or look for the first step at which "
                "the loss grew."
            )
        if not self._said_dropped:
            say(
                f"{self.name}: {dropped} of {size} candidates of batch {self._calls + 1} have a loss that is not "
                "finite. Such candidates are not trained on. The log's batch_selection/dropped counts them."
            )
            self._said_dropped = True

    def _count_flops(self, model: nn.Module, batch: Mapping[str, Any], choice: Choice) -> None:
        if self._flops is None or self._flops[0] != id(model):
            self._flops = (id(model), model_flops(model))
        each = self._flops[1]
        kept = take(batch, choice.order)["input_ids"].numel()
        choice.flops_full = each.train * batch["input_ids"].numel()
        choice.scoring_flops = each.forward * choice.scored_share * choice.scored_tokens + choice.more_flops
        choice.flops_spent = choice.scoring_flops + each.train * kept


def _explain(kind: type[BatchSelector], problem: Any) -> str:
    key = str(problem["loc"][0]) if problem["loc"] else ""
    fields = kind.model_fields
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{kind.name} has no setting {key!r}.{hint} It takes {', '.join(fields)}."
    if key not in fields:
        return f"{kind.name}: {problem['msg'].removeprefix('Value error, ')}."
    wants = f"It must be {accepted(fields[key])}: {fields[key].description}"
    return f"{kind.name}: {key}={problem['input']!r} cannot be used. {wants}"
