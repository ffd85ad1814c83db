"""The model's last layer: its weight by rows of the vocabulary, and what the model does to the logits after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from pursuit.errors import ModelError

MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # Cohere, Falcon-H1 and their kin
DIVISOR = "logits_scaling"  # Granite divides by it, HyperCLOVA X multiplies
CHECKED_TOKENS = 8


@dataclass(frozen=True)
class Head:
    """logits = cap · tanh(scale · (h Wᵀ + b) / cap), without the cap scale · (h Wᵀ + b).

    Attributes:
        weight: (V, H) of the linear layer.
        bias: (V,) or None.
        adapters: (B, A, scaling) of each LoRA on the layer, B (V, r) and A (r, H); added to the weight.
        scale: factor of the logits.
        softcap: bound of the logits, None without.
        tied: whether the input embeddings are the same tensor.
    """

    weight: nn.Parameter
    bias: Tensor | None
    adapters: tuple[tuple[Tensor, Tensor, float], ...]
    scale: float
    softcap: float | None
    tied: bool

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    def product_dtype(self) -> torch.dtype:
        """The precision in which the model itself would form the logits here and now."""
        kind = self.weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """(stop − start, H) rows of the weight in effect."""
        rows = self.weight[start:stop].detach().to(dtype)
        for up, down, scaling in self.adapters:
            rows = rows + scaling * (up[start:stop].detach() @ down.detach()).to(dtype)
        return rows

    def finish(self, product: Tensor, start: int, stop: int) -> Tensor:
        """Logits of the columns start … stop from h Wᵀ, in float32 and in place where `product` is float32."""
        logits = product.float()
        if self.bias is not None:
            logits = logits.add_(self.bias[start:stop].detach().float())
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logit / d (scale · (h Wᵀ + b)) at these logits; None where it is 1."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()


def unwrap(model: Any) -> Any:
    """The model below torch.compile and data-parallel wrappers; a PEFT model stays one."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def language_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, below PEFT too.

    Raises:
        ModelError: none there, or prompt tokens are learnt, whose positions have no labels.
    """
    model = unwrap(model)
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ModelError(
                "Batch selection cannot score a model with learnt prompt tokens: its hidden states have more positions "
                "than the batch has labels. Use LoRA or full training."
            )
        model = unwrap(model.get_base_model())
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"Batch selection needs a causal language model of transformers, not {type(model).__name__}.")
    return model


def head_module(model: nn.Module) -> nn.Module:
    """The module that makes logits of hidden states.

    Raises:
        ModelError: the model has no output embeddings.
    """
    base = language_model(model)
    try:
        module = base.get_output_embeddings()
    except NotImplementedError:
        module = None
    if module is None:
        raise ModelError(
            f"{type(base).__name__} has no output embeddings (get_output_embeddings), so there is no lm_head whose "
            "gradient could describe an example. Use the model's class for causal language modelling."
        )
    return module


def find_head(model: nn.Module) -> Head:
    """The head as the configuration describes it; `checked_head` compares it with what the model does.

    Raises:
        ModelError: no output embeddings, or a head whose rows cannot be read (quantised, or wrapped in a way unknown
            here).
    """
    base = language_model(model)
    module: Any = head_module(model)
    if hasattr(module, "modules_to_save"):  # peft trains a copy of the whole layer
        module = module.modules_to_save[module.active_adapter]
    adapters = tuple(_adapters(module))
    layer = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not weight.is_floating_point():
        raise ModelError(
            f"the head of {type(base).__name__} is a {type(module).__name__}, whose weight cannot be read by rows of "
            "the vocabulary. Leave the lm_head out of the quantisation (llm_int8_skip_modules) or choose with "
            "'random' or 'full'."
        )
    config = base.config.get_text_config()
    embeddings = base.get_input_embeddings()
    return Head(
        weight=weight, bias=getattr(layer, "bias", None), adapters=adapters, scale=_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
        tied=getattr(embeddings, "weight", None) is weight,
    )  # fmt: skip


def _adapters(module: Any) -> Iterator[tuple[Tensor, Tensor, float]]:
    if not hasattr(module, "lora_A") or getattr(module, "disable_adapters", False) or getattr(module, "merged", False):
        return
    for name in module.active_adapters:
        if name in module.lora_A:
            if name in getattr(module, "lora_variant", {}) or getattr(module.lora_B[name], "bias", None) is not None:
                raise ModelError(
                    "the adapter on the lm_head is more than a product of two matrices (DoRA, a bias, or another "
                    "variant of LoRA), so its logits cannot be made from its rows. Use a plain LoRA there, or none."
                )
            yield module.lora_B[name].weight, module.lora_A[name].weight, float(module.scaling[name])


def _scale(config: Any) -> float:
    for name in MULTIPLIERS:
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, DIVISOR, None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1 / float(divisor)


@torch.no_grad()
def check_head(model: nn.Module, head: Head, ids: Tensor) -> None:
    """Compare the logits of a few tokens as the model makes them with `head`'s.

    Args:
        model: in evaluation mode.
        ids: (≥ 1,) token ids; the first 8 are read.

    Raises:
        ModelError: they differ, so this model does something to its logits that the feature's gradient would miss.
    """
    seen: list[Tensor] = []
    hook = head_module(model).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    # accelerate leaves its mixed precision on a model that it has trained; the scoring pass does not go through it
    plain = unwrap(model)
    forward = getattr(plain, "_original_forward", plain)
    try:
        expected = forward(input_ids=ids[None, :CHECKED_TOKENS]).logits[0].float()
    finally:
        hook.remove()
    if not torch.isfinite(expected).all():
        return  # a model that has diverged: its losses will say so
    hidden, dtype = seen[0].reshape(-1, seen[0].shape[-1]), head.product_dtype()
    ours = head.finish(hidden.to(dtype) @ head.rows(0, head.vocabulary, dtype).T, 0, head.vocabulary)
    tolerance = (1e-3 if dtype == torch.float32 else 0.05) * float(expected.abs().max()) + 1e-6
    if ours.shape != expected.shape or float((ours - expected).abs().max()) > tolerance:
        raise ModelError(
            f"{type(language_model(model)).__name__} does something to its logits beyond a linear layer with "
            "scaling and soft-capping, so the gradient of its lm_head cannot be had from its hidden states. "
            "Choose with 'random' or 'full'."
        )
