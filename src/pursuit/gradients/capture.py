"""Exact per-example gradients of a whole batch from one forward and one backward pass.

Hooks keep each module's input x and the gradient g of its output. For a linear map y = x Wᵀ the gradient of one
example is Σ_tokens g xᵀ, so a batched matrix product gives those of all examples at once. Weights stay frozen:
backward never forms the batch's summed weight gradient, and nothing below the first captured module is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers.pytorch_utils import Conv1D

from pursuit.errors import ModelError
from pursuit.gradients.losses import Batch, example_losses
from pursuit.gradients.scratch import Scratch
from pursuit.gradients.sketch import COLUMNS, ROWS, MatrixSketch, reduced
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
    """
    parameters = trainable_parameters(model)
    blocks: dict[str, Tensor] = {}
    batch_gradients(model, batch, parameters, lambda name, block: blocks.update({name: block.clone()}))
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
    """Run one batch; `consume(name, block)` receives each parameter's (B, *shape) float32 block as backward makes it.

    A block is handed over once, to be changed at will, and its memory serves the next one: the peak is one parameter's
    block and never (B, P). Parameters that the loss does not depend on are not reported.

    Args:
        sketch: its matrices are projected without being formed, to blocks of the shape that it makes.

    Returns:
        (B,) losses without graph.
    """
    shape = tuple(batch["input_ids"].shape)
    with _evaluation(model), torch.enable_grad(), _Capture(model, parameters, consume, shape, sketch) as capture:
        losses = example_losses(model, batch, head_apart=capture.within_body(model))
        if losses.requires_grad:
            losses.sum().backward()
        capture.flush()
    return losses.detach()


class _Capture:
    """Hooks on the modules that own the parameters, for the duration of a `with`."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], consume: Consume, shape: tuple[int, ...],
        sketch: MatrixSketch | None,
    ) -> None:  # fmt: skip
        self.consume, self.shape, self.scratch, self.sketch = consume, shape, Scratch(), sketch
        self.owners = _owning_modules(model, parameters)
        self.expected: dict[str, int] = {}  # how many contributions each parameter still gets (tied or reused weights)
        self.pending: dict[str, Tensor] = {}
        self.deferred: list[tuple[_Call, Tensor]] = []
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Capture:
        for module, names in self.owners.items():
            self.handles.append(module.register_forward_hook(self._forward_hook(names), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def within_body(self, model: nn.Module) -> bool:
        """Whether all captured modules lie below the head, which may then be run apart from their graph."""
        split = split_model(model)
        return split is not None and not split.above() & set(self.owners)

    def _forward_hook(self, names: dict[str, str]) -> Callable[..., None]:
        def forward(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ModelError(f"{type(module).__name__} does not return one tensor: its weights cannot be used.")
            if not output.requires_grad:
                output.requires_grad_(True)  # the graph starts here: nothing below needs differentiating
            for name in names.values():
                self.expected[name] = self.expected.get(name, 0) + 1
            by_example = self._by_example
            call = _Call(module, names, tuple(map(by_example, inputs)), {k: by_example(v) for k, v in keywords.items()})
            if self.sketch is not None:
                call = with_narrow_input(call, by_example(output).dim(), self.sketch)
            output.register_hook(lambda gradient: self._backward(call, by_example(gradient)))

        return forward

    def _by_example(self, value: Any) -> Any:
        """Detach, and give (B·T, …) its batch axis back: some models flatten the tokens before their MLP."""
        if not isinstance(value, Tensor):
            return value
        examples, tokens = self.shape
        flattened = value.dim() > 0 and len(value) == examples * tokens != examples
        return value.detach().unflatten(0, self.shape) if flattened else value.detach()

    def _backward(self, call: _Call, gradient: Tensor) -> None:
        found = matrix_gradients(call, gradient, self.scratch, self.sketch)
        if found is None:
            self.deferred.append((call, gradient))  # torch allows no further differentiation inside a backward pass
            return
        for local, block in found.items():
            self._add(call.names[local], block)

    def _add(self, name: str, block: Tensor) -> None:
        if name in self.pending:
            block = self.pending.pop(name) + block
        self.expected[name] -= 1
        if self.expected[name]:
            self.pending[name] = block.clone()
        else:
            self.consume(name, block)

    def flush(self) -> None:
        """After backward: the deferred modules, and parameters of which some use did not reach the loss."""
        self.__exit__()  # the calls below must not be captured again
        for call, gradient in self.deferred:
            for local, block in any_module_gradients(call, gradient).items():
                name = call.names[local]
                self._add(name, block if self.sketch is None else reduced(self.sketch, name, block))
        for name, block in self.pending.items():
            self.consume(name, block)


@dataclass(frozen=True)
class _Call:
    """One call of a module: what went in, and its own parameters' names → the model's names for them.

    `narrow`: the input is that of `weight`, multiplied by its factor already.
    """

    module: nn.Module
    names: dict[str, str]
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    narrow: bool = False


def with_narrow_input(call: _Call, output_dim: int, sketch: MatrixSketch) -> _Call:
    """The call with its input narrowed, where `matrix_gradients` will take it: a longer one need not be kept."""
    name, module = call.names.get("weight"), call.module
    if name is None or name not in sketch:
        return call
    if _is_linear(module) and output_dim == 3:
        side, size = ROWS if isinstance(module, Conv1D) else COLUMNS, call.inputs[0].shape[-1]
        if sketch.width(name, side, size) < size:
            return replace(call, inputs=(sketch.narrow(name, side, call.inputs[0]),), narrow=True)
    if _is_embedding(module) and call.inputs[0].dim() == 2:
        rows: int = module.num_embeddings  # type: ignore[assignment]
        found = sketch.narrow_ids(name, call.inputs[0], rows, module.padding_idx)  # type: ignore[arg-type]
        return replace(call, inputs=(found,), narrow=True)
    return call


def _is_linear(module: nn.Module) -> bool:
    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward


def matrix_gradients(
    call: _Call, gradient: Tensor, scratch: Scratch, sketch: MatrixSketch | None
) -> dict[str, Tensor] | None:
    """Per-example gradients of a linear map or an embedding by one batched product; None for other modules.

    Args:
        call: what went in: (B, T, in), or token ids (B, T), or the narrow form of either.
        gradient: of its output, (B, T, out).
        scratch: memory for the weight's block.

    Returns:
        name → (B, *parameter shape) or what the sketch makes, float32.
    """
    module = call.module
    if _is_linear(module) and gradient.dim() == 3:
        found = {}
        if "weight" in call.names:
            found["weight"] = _product(call, gradient, isinstance(module, Conv1D), scratch, sketch)
        if "bias" in call.names:
            found["bias"] = gradient.float().sum(dim=1)
        return found
    if _is_embedding(module) and call.narrow:
        return {"weight": _product(call, gradient, True, scratch, sketch)}
    if _is_embedding(module) and len(call.inputs[0]) == len(gradient):
        return {"weight": _embedding_gradients(module, call.inputs[0], gradient)}  # type: ignore[arg-type]
    return None


def _product(
    call: _Call, gradient: Tensor, input_first: bool, scratch: Scratch, sketch: MatrixSketch | None
) -> Tensor:  # fmt: skip
    """Σ_tokens of the outer products of input and gradient, in the order in which the weight has its axes."""
    name, given = call.names["weight"], call.inputs[0]
    if sketch is not None and name in sketch:
        sides = (ROWS, COLUMNS) if input_first else (COLUMNS, ROWS)
        given = given if call.narrow else sketch.narrow(name, sides[0], given)
        gradient = sketch.narrow(name, sides[1], gradient)
        return sketch.product(name, *((given, gradient) if input_first else (gradient, given)))
    left, right = (given, gradient) if input_first else (gradient, given)
    shape = (len(left), left.shape[2], right.shape[2])
    out = scratch.take(shape, left.device) if left.dtype == right.dtype == torch.float32 else None
    return torch.bmm(left.transpose(1, 2), right.to(left.dtype), out=out).float()


def _embedding_gradients(module: nn.Embedding, ids: Tensor, gradient: Tensor) -> Tensor:
    rows = torch.zeros(len(ids), *module.weight.shape, device=gradient.device)
    for example, (tokens, values) in enumerate(zip(ids, gradient, strict=True)):
        rows[example].index_add_(0, tokens, values.float())
    if module.padding_idx is not None:
        rows[:, module.padding_idx] = 0  # as torch does
    return rows


def any_module_gradients(call: _Call, gradient: Tensor) -> dict[str, Tensor]:
    """Norms and other modules: the module's own derivative, for all examples at once by vmap."""
    parameters = {name: p.detach() for name, p in call.module.named_parameters(recurse=False) if name in call.names}
    examples = len(gradient)
    values, structure = tree_flatten((call.inputs, call.keywords))
    per_example = [isinstance(v, Tensor) and v.dim() > 0 and len(v) == examples for v in values]
    if not any(per_example):
        raise ModelError(
            f"{type(call.module).__name__} mixes the examples of a batch (experts do), so their gradients cannot be "
            "told apart. Choose parameters of other modules, attention projections for example."
        )

    def pull_back(out: Tensor, *own: Tensor) -> dict[str, Tensor]:
        singles = iter(own)
        filled = [next(singles).unsqueeze(0) if yes else v for v, yes in zip(values, per_example, strict=True)]
        inputs, keywords = tree_unflatten(filled, structure)

        def run(weights: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(call.module, weights, inputs, keywords).squeeze(0)

        return torch.func.vjp(run, parameters)[1](out)[0]

    own = [v for v, yes in zip(values, per_example, strict=True) if yes]
    return {name: block.float() for name, block in torch.func.vmap(pull_back)(gradient, *own).items()}


def _owning_modules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Module, dict[str, str]]:
    """module → {its own parameter's name: the model's name for it}; a tied parameter has several owners."""
    if not parameters:
        raise ModelError("no parameter of the model requires a gradient: add LoRA or name the weights to train.")
    names = {id(p): name for name, p in parameters.items()}
    owners: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
        if own:
            owners[module] = own
    missing = set(names.values()) - {name for own in owners.values() for name in own.values()}
    if missing:
        raise ModelError(f"{sorted(missing)[0]}: not a parameter of this model.")
    return owners


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights; every module's mode and every flag is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
