"""Per-example gradients of one module's own parameters: from what went into a call, and its output's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers.pytorch_utils import Conv1D

from pursuit.devices import out_of_memory
from pursuit.errors import ModelError
from pursuit.gradients.products import Products
from pursuit.gradients.sketch import COLUMNS, ROWS, MatrixSketch


@dataclass(frozen=True)
class Inputs:
    """What went into a call of a module."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]


Kept = Tensor | Inputs  # of a call, until backward comes to its output


class Owner:
    """A module that has parameters whose gradients are wanted. Any module: its own derivative is taken.

    Attributes:
        names: its own parameters' names → the model's names for them.
        sketch: that projects its weight, if one does.
    """

    def __init__(self, module: nn.Module, names: dict[str, str], sketch: MatrixSketch | None) -> None:
        self.module, self.names = module, names
        self.sketch = sketch if sketch is not None and any(name in sketch for name in names.values()) else None

    def keep(self, shape: Sequence[int], inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Kept:
        """What is needed of a call in a batch of (B, T) tokens."""
        return Inputs(
            tuple(by_example(value, shape) for value in inputs),
            {name: by_example(value, shape) for name, value in keywords.items()},
        )

    def gradients(self, kept: Tensor, gradient: Tensor, products: Products) -> None:
        """Hand over the per-example gradients of its parameters, or what they are products of.

        Args:
            kept: the tensor that `keep` gave. Of `Inputs` they are to be had by `any_module_gradients` alone.
            gradient: of the output, (B, T, out).
        """


class LinearMap(Owner):
    """y = x Wᵀ + b, or y = x W + b where the weight is stored so."""

    def __init__(self, module: nn.Module, names: dict[str, str], sketch: MatrixSketch | None) -> None:
        super().__init__(module, names, sketch)
        self.input_side, self.output_side = (ROWS, COLUMNS) if isinstance(module, Conv1D) else (COLUMNS, ROWS)
        self.weight, self.bias = names.get("weight"), names.get("bias")
        self.narrows = False  # the input at once: a longer one need not be kept
        if self.weight is not None and self.sketch is not None:
            size: int = module.weight.shape[self.input_side]  # type: ignore[assignment,index]
            self.narrows = self.sketch.width(self.weight, self.input_side, size) < size

    def keep(self, shape: Sequence[int], inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Kept:
        """See `Owner`; (B, T, in) or narrower."""
        given: Tensor | None = by_example(inputs[0], shape) if inputs else None
        if given is None or given.dim() != 3:
            return super().keep(shape, inputs, keywords)
        if self.narrows:
            return self.sketch.narrow(self.weight, self.input_side, given)  # type: ignore[union-attr,arg-type]
        return given

    def gradients(self, kept: Tensor, gradient: Tensor, products: Products) -> None:
        """See `Owner`; a matrix has its axes in the order of the weight's."""
        if self.bias is not None:
            products.done(self.bias, gradient.float().sum(dim=1))
        if self.weight is None:
            return
        if self.sketch is not None:
            if not self.narrows:
                kept = self.sketch.narrow(self.weight, self.input_side, kept)
            gradient = self.sketch.narrow(self.weight, self.output_side, gradient)
        rows, columns = (kept, gradient) if self.input_side == ROWS else (gradient, kept)
        products(self.weight, rows, columns, self.sketch)


class Embedding(Owner):
    """Rows of a matrix by token id."""

    def keep(self, shape: Sequence[int], inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Kept:
        """See `Owner`; (B, T) ids, or (B, T, m) of the sketch."""
        ids: Tensor | None = by_example(inputs[0], shape) if inputs else None
        if ids is None or ids.dim() != 2:
            return super().keep(shape, inputs, keywords)
        if self.sketch is not None:
            rows: int = self.module.num_embeddings  # type: ignore[assignment]
            padding: int | None = self.module.padding_idx  # type: ignore[assignment]
            return self.sketch.narrow_ids(self.names["weight"], ids, rows, padding)
        return ids

    def gradients(self, kept: Tensor, gradient: Tensor, products: Products) -> None:
        """See `Owner`."""
        name = self.names["weight"]
        if self.sketch is not None:
            products(name, kept, self.sketch.narrow(name, COLUMNS, gradient), self.sketch)
        else:
            products.done(name, _embedding_gradients(self.module, kept, gradient))  # type: ignore[arg-type]


def make_owner(module: nn.Module, names: dict[str, str], sketch: MatrixSketch | None) -> Owner:
    """What fits the module best."""
    forward = type(module).forward
    if forward in (nn.Linear.forward, Conv1D.forward):
        return LinearMap(module, names, sketch)
    if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
        return Embedding(module, names, sketch)
    return Owner(module, names, sketch)


def by_example(value: Any, shape: Sequence[int]) -> Any:
    """Detach, and give (B·T, …) its batch axis back: some models flatten the tokens before their MLP."""
    if not isinstance(value, Tensor):
        return value
    examples, tokens = shape
    if value.dim() == 0 or value.shape[0] in (examples, 0) or value.shape[0] != examples * tokens:
        return value.detach()
    return value.detach().unflatten(0, shape)


def _embedding_gradients(module: nn.Embedding, ids: Tensor, gradient: Tensor) -> Tensor:
    rows = torch.zeros(len(ids), *module.weight.shape, device=gradient.device)
    for example, (tokens, values) in enumerate(zip(ids, gradient, strict=True)):
        rows[example].index_add_(0, tokens, values.float())
    if module.padding_idx is not None:
        rows[:, module.padding_idx] = 0  # as torch does
    return rows


def any_module_gradients(owner: Owner, given: Inputs, gradient: Tensor) -> dict[str, Tensor]:
    """Norms and other modules: the module's own derivative, for all examples at once by vmap; by the model's names."""
    module, names, examples = owner.module, owner.names, len(gradient)
    parameters = {name: p.detach() for name, p in module.named_parameters(recurse=False) if name in names}
    values, structure = tree_flatten((given.positional, given.keywords))
    per_example = [isinstance(v, Tensor) and v.dim() > 0 and len(v) == examples for v in values]
    if not any(per_example):
        raise ModelError(
            f"{type(module).__name__} mixes the examples of a batch (experts do), so their gradients cannot be "
            "told apart. Choose parameters of other modules, attention projections for example."
        )

    def pull_back(out: Tensor, *own: Tensor) -> dict[str, Tensor]:
        singles = iter(own)
        filled = [next(singles).unsqueeze(0) if yes else v for v, yes in zip(values, per_example, strict=True)]
        inputs, keywords = tree_unflatten(filled, structure)

        def run(weights: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(module, weights, inputs, keywords).squeeze(0)

        return torch.func.vjp(run, parameters)[1](out)[0]

    own = [v for v, yes in zip(values, per_example, strict=True) if yes]
    try:
        found = torch.func.vmap(pull_back)(gradient, *own)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{type(module).__name__}: the gradients of {', '.join(names.values())} cannot be taken row by "
            f"row ({str(error).splitlines()[0]}). Leave these weights out; attention projections always go."
        ) from error
    return {names[local]: block.float() for local, block in found.items()}
