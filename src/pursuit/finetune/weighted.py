"""A mix-in that lets transformers' and TRL's trainers use the rows' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuit.batches import IGNORED
from pursuit.errors import DataError, SettingsError
from pursuit.finetune.weights import check_weights, mean_weight

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

WEIGHT = "weight"


class WeightedLossMixin(_Base):
    """Multiplies the loss of each training example by its column `weight`.

        class Trainer(WeightedLossMixin, trl.SFTTrainer): ...       # or transformers.Trainer

    With v_i = w_i / mean(w), the mean over the training rows whose weight is above 0, an optimizer step follows the
    gradient of

        Σ_i v_i Σ_t ℓ_it / n

    over its examples i and their learnt tokens t, n of them, over all micro batches and processes of the step: the
    loss of the unweighted trainer, each example's part in it times v_i. With equal weights it is the unweighted
    trainer's to rounding. A row of weight 0 counts as one without a learnt token: it has no effect. Evaluation is
    not weighted. [ours: the papers train unweighted or do not say]

    SFTTrainer's token accuracy and entropy are not logged while training, as its own loss is not computed.

    Raises:
        DataError: no column `weight`; a weight that is negative or no number, with its row; all are 0; or a batch in
            which examples no longer are rows.
        SettingsError: packing, padding-free batches, a streamed data set, several GPUs in one process, or a loss other
            than plain cross-entropy (label smoothing, `loss_type`, `compute_loss_func`, a router's loss).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("train_dataset") is not None:
            _weights(kwargs["train_dataset"])  # before the trainer shuffles or filters: errors name the user's row
        super().__init__(*args, **kwargs)
        _refuse_other_losses(self)
        if self.train_dataset is not None:
            self._mean_weight = mean_weight(_weights(self.train_dataset))

    def get_train_dataloader(self) -> Any:
        if self.train_dataset is None:
            return super().get_train_dataloader()  # which says what is missing
        plain = self.data_collator
        self.data_collator = _WeightedCollator(plain, self._mean_weight)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain  # evaluation has no weights

    def _set_signature_columns_if_needed(self) -> None:
        """The columns that the trainer keeps, and `weight`."""
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if WEIGHT not in columns:
            columns.append(WEIGHT)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weights = inputs.pop(WEIGHT, None)
        if weights is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        losses, learnt = _token_losses(outputs.logits, labels)
        count = learnt.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = (losses * weights.to(losses)[:, None]).sum() / count.to(losses.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the processes' gradients are averaged, not summed
        return (loss, outputs) if return_outputs else loss


def _token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T − 1) cross-entropy in nats, 0 where nothing is learnt, and the mask of where something is."""
    following = labels[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), following, ignore_index=IGNORED, reduction="none")
    return losses, following != IGNORED


class _WeightedCollator:
    """Takes the weights out of the examples, and puts them into the batch as one float32 tensor (B,) of mean 1."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], mean: float) -> None:
        self.collate, self.mean = collate, mean

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        weights = torch.tensor([float(example[WEIGHT]) / self.mean for example in examples])
        bare = [{name: value for name, value in example.items() if name != WEIGHT} for example in examples]
        batch = dict(self.collate(bare))
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.dim() != 2 or len(labels) != len(weights):
            shape = tuple(labels.shape) if isinstance(labels, Tensor) else None
            raise DataError(
                f"a batch of {len(weights)} examples has labels of shape {shape}; to weight them, every example must "
                "stay a row of its own. Turn packing off, and use a collator that gives labels."
            )
        batch["labels"] = labels.masked_fill((weights == 0)[:, None], IGNORED)
        batch[WEIGHT] = weights
        return batch


def _weights(dataset: Any) -> Any:
    """(n,) float64 weights of a training set."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise SettingsError(
            "a streamed data set cannot be weighted: its weights must all be known at first, to be scaled to mean 1."
        )
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        examples = (dataset[row] for row in range(len(dataset)))
        values: list[Any] = [example.get(WEIGHT) if isinstance(example, Mapping) else None for example in examples]
    else:
        values = list(dataset[WEIGHT]) if WEIGHT in columns else [None]
    if None in values:
        raise DataError(
            f"row {values.index(None)} of the training set has no {WEIGHT!r}. `pursuit export --to trl` writes that "
            "column; without weights use the trainer without this mix-in."
        )
    return check_weights(values, "row {} of the training set".format)


def _refuse_other_losses(trainer: Any) -> None:
    """Each of these would make the weighted loss another one than the trainer's."""
    args = trainer.args
    one_each = "one weight belongs to one example, and here several examples become one row"
    reasons = {
        "packing": (getattr(args, "packing", False), one_each),
        "padding_free": (getattr(args, "padding_free", False), one_each),
        "a padding-free collator": (
            getattr(trainer.data_collator, "padding_free", False) or "Flatten" in type(trainer.data_collator).__name__,
            one_each,
        ),
        "label_smoothing_factor": (args.label_smoothing_factor != 0, "weights are defined for plain cross-entropy"),
        "loss_type": (getattr(args, "loss_type", "nll") != "nll", "weights are defined for plain cross-entropy"),
        "compute_loss_func": (trainer.compute_loss_func is not None, "the mix-in brings the loss"),
        "output_router_logits": (
            getattr(trainer.model.config, "output_router_logits", False) or getattr(trainer, "aux_loss_enabled", False),
            "the router's loss would be left out",
        ),
        "an encoder-decoder model": (
            getattr(trainer.model.config, "is_encoder_decoder", False),
            "its labels are not shifted",
        ),
        "several GPUs in one process": (args.n_gpu > 1, "start it with accelerate launch, or show it one GPU"),
    }
    for name, (found, reason) in reasons.items():
        if found:
            raise SettingsError(f"{name} does not go with weighted losses: {reason}. Turn it off.")
