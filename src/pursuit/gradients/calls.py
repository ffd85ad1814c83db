"""Per-example gradients of one module's own parameters: from what went into a call, and its output's gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers.pytorch_utils import Conv1D

from pursuit.devices import out_of_memory
from pursuit.errors import ModelError
from pursuit.gradients.scratch import Scratch
from pursuit.gradients.sketch import COLUMNS, ROWS, MatrixSketch


@dataclass(frozen=True)
class Call:
    """One call of a module: what went in, and its own parameters' names → the model's names for them.

    `narrow`: the input is that of `weight`, multiplied by its factor already.
    """

    module: nn.Module
    names: dict[str, str]
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    narrow: bool = False


def with_narrow_input(call: Call, output_dim: int, sketch: MatrixSketch) -> Call:
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
    call: Call, gradient: Tensor, scratch: Scratch, sketch: MatrixSketch | None
) -> dict[str, Tensor] | None:
    """Per-example gradients of a linear map or an embedding by one batched product; None for other modules.

    Args:
        call: what went in: (B, T, in), or token ids (B, T), or the narrow form of either.
        gradient: of its output, (B, T, out).
        scratch: memory for the weight's block.

    Returns:
        name → (B, *parameter shape) or what the sketch makes; float32 or in the type of what went in.
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
    call: Call, gradient: Tensor, input_first: bool, scratch: Scratch, sketch: MatrixSketch | None
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
    return torch.bmm(left.transpose(1, 2), right.to(left.dtype), out=out)


def _embedding_gradients(module: nn.Embedding, ids: Tensor, gradient: Tensor) -> Tensor:
    rows = torch.zeros(len(ids), *module.weight.shape, device=gradient.device)
    for example, (tokens, values) in enumerate(zip(ids, gradient, strict=True)):
        rows[example].index_add_(0, tokens, values.float())
    if module.padding_idx is not None:
        rows[:, module.padding_idx] = 0  # as torch does
    return rows


def any_module_gradients(call: Call, gradient: Tensor) -> dict[str, Tensor]:
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
    try:
        found = torch.func.vmap(pull_back)(gradient, *own)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{type(call.module).__name__}: the gradients of {', '.join(call.names.values())} cannot be taken row by "
            f"row ({str(error).splitlines()[0]}). Leave these weights out; attention projections always go."
        ) from error
    return {name: block.float() for name, block in found.items()}
