"""Exact per-example gradients of a whole batch from one forward and one backward pass.

Hooks keep each module's input x and the gradient g of its output. For a linear map y = x Wᵀ the gradient of one
example is Σ_tokens g xᵀ, so a batched matrix product gives those of all examples at once. Weights stay frozen:
backward never forms the batch's summed weight gradient, and nothing below the first captured module is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pursuit.errors import ModelError
from pursuit.gradients.calls import Inputs, Kept, Owner, any_module_gradients, by_example, make_owner
from pursuit.gradients.losses import Batch, check_batch, example_losses
from pursuit.gradients.products import PUT_OFF, Products
from pursuit.gradients.sketch import MatrixSketch, reduced
from pursuit.gradients.split import split_model
from pursuit.models.trainable import trainable_parameters

Consume = Callable[[str, Tensor], None]


def example_gradients(model: nn.Module, batch: Batch) -> Tensor:
    """Gradient of each example's own mean loss, dropout off, over all parameters that require gradients.

    Args:
        model: causal language model; the parameters with `requires_grad` are the coordinates.
        batch: as for `example_losses`.

    Returns:
        (B, P) float32: parameters in alphabetical order of their names, each flattened as it lies in memory.

    Raises:
        ModelError: no parameter requires a gradient, or one belongs to a module that cannot be captured.
        DataError: the batch is not what `example_losses` takes.
    """
    parameters = trainable_parameters(model)
    check_batch(batch)
    blocks: dict[str, Tensor] = {}
    batch_gradients(model, batch, parameters, lambda name, block: blocks.update({name: block.clone()}))
    refuse_unseen(model, batch, {name: p for name, p in parameters.items() if name not in blocks})
    size = len(batch["input_ids"])
    device = batch["input_ids"].device
    return torch.cat([
        blocks[name].flatten(1) if name in blocks else torch.zeros(size, p.numel(), device=device)
        for name, p in parameters.items()
    ], dim=1)  # fmt: skip


def batch_gradients(
    model: nn.Module, batch: Batch, parameters: Mapping[str, nn.Parameter], consume: Consume,
    sketch: MatrixSketch | None = None,
) -> Tensor:  # fmt: skip
    """Run one batch, see `ExampleGradients`; `consume` receives float32 blocks.

    Returns:
        (B,) losses without graph.
    """
    gradients = ExampleGradients(model, parameters, sketch)
    return gradients(batch, lambda name, block: consume(name, block.float()))


class ExampleGradients:
    """Gradients of one model, batch after batch.

    What there is to know of its modules is looked up once: a small model's batch on a GPU would wait for that.

    Attributes:
        model: whose modules must not be exchanged meanwhile; its weights may change.
        parameters: whose gradients are wanted.
        sketch: its matrices are projected without being formed, to blocks of the shape that it makes.
        put_off: numbers that products may wait for to be made together, see `Products`; without, none on a CPU, and
            what a GPU needs there.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter] | None = None,
        sketch: MatrixSketch | None = None, put_off: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.sketch, self.put_off = model, sketch, put_off
        self.parameters = trainable_parameters(model) if parameters is None else parameters
        self._modules, self._weights = list(model.modules()), list(model.parameters())
        owning = _owning_modules(self._modules, self.parameters)
        self._owners = [make_owner(module, names, sketch) for module, names in owning.items()]
        self._split = split_model(model)
        # whether all captured modules lie below the head, which may then be run apart from their graph
        self._below_head = self._split is not None and not self._split.above & set(owning)

    def __call__(self, batch: Batch, consume: Consume) -> Tensor:
        """Run one batch; `consume(name, block)` receives each parameter's (B, *shape) block as backward makes it.

        A block is float32 or as the model computes. It is handed over once, to be changed at will, and its memory
        serves the next one: the peak is one parameter's block, or `put_off` numbers, and never (B, P). Parameters that
        the loss does not depend on are not reported.

        Returns:
            (B,) losses without graph.
        """
        ids = batch["input_ids"]
        put_off = (0 if ids.device.type == "cpu" else PUT_OFF) if self.put_off is None else self.put_off
        capture = _Capture(self._owners, consume, tuple(ids.shape), put_off)
        with _evaluation(self.model, self._modules, self._weights), torch.enable_grad(), capture:
            losses = example_losses(self.model, batch, head_apart=self._below_head, split=self._split)
            if losses.requires_grad:
                losses.sum().backward()
            capture.flush()
        return losses.detach()


def refuse_unseen(model: nn.Module, batch: Batch, unreported: Mapping[str, nn.Parameter]) -> None:
    """ModelError if the loss of a batch depends on parameters of which `batch_gradients` reported nothing."""
    if not unreported:
        return
    with _evaluation(model, list(model.modules()), list(model.parameters())), torch.enable_grad():
        for parameter in unreported.values():
            parameter.requires_grad_(True)
        losses = example_losses(model, batch)
        if not losses.requires_grad:
            return
        gradients = torch.autograd.grad(losses.sum(), list(unreported.values()), allow_unused=True)
    missed = [name for name, gradient in zip(unreported, gradients, strict=True) if gradient is not None]
    if missed:
        raise ModelError(
            f"{missed[0]}{f' and {len(missed) - 1} more' * (len(missed) > 1)}: used in a way that hooks do not see, so "
            "the gradients of single rows cannot be had. Use plain LoRA on attention projections, or other weights."
        )


class _Capture:
    """Hooks on the modules that own the parameters, for one batch and the duration of a `with`."""

    def __init__(
        self, owners: Sequence[Owner], consume: Consume, shape: tuple[int, ...], put_off: int
    ) -> None:  # fmt: skip
        self.owners, self.consume, self.shape = owners, consume, shape
        self.products = Products(self._add, put_off)
        self.expected: dict[str, int] = {}  # how many contributions each parameter still gets (tied or reused weights)
        self.pending: dict[str, Tensor] = {}
        self.deferred: list[tuple[Owner, Inputs, Tensor]] = []
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Capture:
        for owner in self.owners:
            hook = partial(self._forward, owner)
            self.handles.append(owner.module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _forward(
        self, owner: Owner, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:  # fmt: skip
        """A small model waits for what is done here and in `_backward`: at most a few calls a module."""
        if not isinstance(output, Tensor):
            raise ModelError(
                f"{type(module).__name__} does not return one tensor, so the gradients of "
                f"{', '.join(owner.names.values())} cannot be told apart by row: leave these weights out."
            )
        if not output.requires_grad:
            output.requires_grad_(True)  # the graph starts here: nothing below needs differentiating
        for name in owner.names.values():
            self.expected[name] = self.expected.get(name, 0) + 1
        kept = owner.keep(self.shape, inputs, keywords)
        output.register_hook(partial(self._backward, owner, kept))

    def _backward(self, owner: Owner, kept: Kept, gradient: Tensor) -> None:
        gradient = by_example(gradient, self.shape)
        if isinstance(kept, Inputs):
            self.deferred.append((owner, kept, gradient))  # torch differentiates nothing inside a backward pass
            return
        owner.gradients(kept, gradient, self.products)

    def _add(self, name: str, block: Tensor) -> None:
        if name in self.pending:
            block = self.pending.pop(name) + block.float()
        self.expected[name] -= 1
        if self.expected[name]:
            self.pending[name] = block.float().clone()
        else:
            self.consume(name, block)

    def flush(self) -> None:
        """After backward: the deferred modules, and parameters of which some use did not reach the loss."""
        self.__exit__()  # the calls below must not be captured again
        self.products.flush()
        for owner, inputs, gradient in self.deferred:
            for name, block in any_module_gradients(owner, inputs, gradient).items():
                self._add(name, block if owner.sketch is None else reduced(owner.sketch, name, block))
        for name, block in self.pending.items():
            self.consume(name, block)


def _owning_modules(
    modules: Sequence[nn.Module], parameters: Mapping[str, nn.Parameter]
) -> dict[nn.Module, dict[str, str]]:  # fmt: skip
    """module → {its own parameter's name: the model's name for it}; a tied parameter has several owners."""
    if not parameters:
        raise ModelError("no parameter of the model requires a gradient: add LoRA or name the weights to train.")
    names = {id(p): name for name, p in parameters.items()}
    owners: dict[nn.Module, dict[str, str]] = {}
    for module in modules:
        own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
        if own:
            owners[module] = own
    missing = set(names.values()) - {name for own in owners.values() for name in own.values()}
    if missing:
        raise ModelError(f"{sorted(missing)[0]}: not a parameter of this model.")
    return owners


@contextmanager
def _evaluation(model: nn.Module, modules: Sequence[nn.Module], weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode and frozen weights; every module's mode and every flag is put back afterwards."""
    training = [module for module in modules if module.training]
    learnt = [weight for weight in weights if weight.requires_grad]
    if training:
        model.eval()
    try:
        for weight in learnt:
            weight.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for weight in weights:
            weight.requires_grad_(False)
        for weight in learnt:
            weight.requires_grad_(True)
