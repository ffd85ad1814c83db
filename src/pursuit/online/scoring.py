"""One forward pass without graph: the hidden states that the head would turn into logits, at labelled positions."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pursuit.batches import IGNORED, plan_batches
from pursuit.errors import ModelError, SettingsError
from pursuit.online.batch import take, used_lengths
from pursuit.online.head import head_module, language_model, unwrap

EXAMPLE_IDS = "example_ids"  # key of a batch: which row of the data set each candidate is
NOT_FOR_THE_MODEL = ("labels", EXAMPLE_IDS)


@dataclass(frozen=True)
class Labelled:
    """What the losses of a batch and the gradients of the head are made from.

    Attributes:
        hidden: (n, H) inputs of the head at positions whose next token is a label, example by example.
        targets: (n,) those labels.
        counts: how many of the n belong to each of the B examples; an example may have none.
    """

    hidden: Tensor
    targets: Tensor
    counts: list[int]

    def of(self, examples: list[int]) -> Labelled:
        """The part that belongs to these examples, in their order."""
        hidden, targets = self.hidden.split(self.counts), self.targets.split(self.counts)
        if not examples:
            return Labelled(self.hidden[:0], self.targets[:0], [])
        return Labelled(
            torch.cat([hidden[i] for i in examples]), torch.cat([targets[i] for i in examples]),
            [self.counts[i] for i in examples],
        )  # fmt: skip


def joined(parts: list[Labelled]) -> Labelled:
    """One after the other."""
    return Labelled(
        torch.cat([part.hidden for part in parts]), torch.cat([part.targets for part in parts]),
        [count for part in parts for count in part.counts],
    )  # fmt: skip


class _Reached(Exception):
    """The head was reached: its input is known and the logits need not be made."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """No graph, no dropout, BatchNorm's statistics as they are; afterwards modes and random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices, key=str)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        torch.clear_autocast_cache()  # weights cast without a graph must not be used again by the training pass


@contextlib.contextmanager
def precision(device: torch.device, dtype: str | None) -> Iterator[None]:
    """Autocast to `dtype`; the precision that holds already without."""
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype=getattr(torch, dtype)):
        yield


@contextlib.contextmanager
def first_layers(model: nn.Module, count: int | None) -> Iterator[None]:
    """Let the model consist of its first `count` layers, its final norm and its head.

    Raises:
        SettingsError: more layers than there are, or a model whose layers are not one list.
    """
    if count is None:
        yield
        return
    base = language_model(model)
    total = base.config.get_text_config().num_hidden_layers
    if count > total:
        raise SettingsError(f"exit_layer={count}: {type(base).__name__} has {total} layers; give 1 … {total}.")
    for parent in base.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                parent._modules[name] = nn.ModuleList(list(child)[:count])
                try:
                    yield
                finally:
                    parent._modules[name] = child
                return
    raise SettingsError(f"exit_layer: the {total} layers of {type(base).__name__} are not one list. Leave it out.")


def labelled_hidden(
    model: nn.Module, batch: Mapping[str, Any], exit_layer: int | None = None, at_once: int | None = None
) -> tuple[Labelled, int]:
    """Run the model up to its head; call it within `undisturbed`.

    The inputs are those of the batch, as training would pass them, so the losses are those that training would see with
    dropout off.

    Args:
        batch: `input_ids` and `labels` (B, T), and whatever else the model takes.
        exit_layer: how many layers to run; all without.
        at_once: padded tokens that go through the model at once; all if not given.

    Returns:
        What the scores are made from, and how many tokens went through the model, padding included.
    """
    every = list(range(len(batch["input_ids"])))
    groups = [every] if at_once is None else plan_batches(every, used_lengths(batch), at_once)
    groups = [sorted(group) for group in groups]
    found, passed = [], 0
    for group in groups:
        part = take(batch, np.array(group))
        inputs = {name: value for name, value in part.items() if name not in NOT_FOR_THE_MODEL}
        if "use_cache" in inspect.signature(type(language_model(model)).forward).parameters:
            inputs["use_cache"] = False
        found.append(labelled(_input_of_head(model, inputs, exit_layer), part["labels"]))
        passed += part["input_ids"].numel()
    if len(groups) == 1:
        return found[0], passed
    order = [example for group in groups for example in group]
    return joined(found).of(np.argsort(order).tolist()), passed


def labelled(hidden: Tensor, labels: Tensor) -> Labelled:
    """The hidden states (B, T, H) whose next token is a label, labels (B, T).

    Raises:
        ModelError: another number of states than labels.
    """
    if hidden.shape[:2] != labels.shape:
        raise ModelError(
            f"the hidden states before the head have shape {tuple(hidden.shape)}, the labels {tuple(labels.shape)}; "
            "batch selection needs one state a label."
        )
    targets = labels[:, 1:].to(hidden.device)  # the state at position t predicts token t + 1
    mask = targets != IGNORED
    return Labelled(hidden[:, :-1][mask], targets[mask], mask.sum(dim=1).tolist())


def _input_of_head(model: nn.Module, inputs: dict[str, Any], exit_layer: int | None) -> Tensor:
    seen: list[Tensor] = []

    def stop(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0])
        raise _Reached

    hook = head_module(model).register_forward_pre_hook(stop)
    try:
        with first_layers(model, exit_layer), contextlib.suppress(_Reached):
            unwrap(model)(**inputs)
    finally:
        hook.remove()
    if not seen:
        raise ModelError(f"{type(language_model(model)).__name__} does not call its output embeddings in its forward.")
    return seen[0]
