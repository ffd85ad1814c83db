"""A language model in two parts: its body makes hidden states, its head makes logits of those that are asked for.

Logits are by far the largest tensor of a pass where the vocabulary is large. With the head apart they are made for a
few tokens at a time, and only for tokens that have a label.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from pursuit.errors import ModelError


class SplitModel:
    """The body and the head of a causal language model of transformers; adapters inside either stay in effect.

    The head is whatever the model's own forward does with its body's result (scaling and soft-capping included): that
    forward is run on given hidden states, with the body replaced for the moment.

    Attributes:
        base: the language model, below a PEFT wrapper.
        body: the module that makes the last hidden states, final norm included.
    """

    def __init__(self, base: PreTrainedModel, body: nn.Module) -> None:
        self.base, self.body = base, body
        self._result: Any = None

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, T, H) last hidden states of a padded batch, with graph; those of padding are meaningless."""
        self._result = self.body(**forward_inputs(self.body, batch, self._body_takes))
        hidden: Tensor = self._result[0]
        return hidden

    def logits(self, rows: Tensor) -> Tensor:
        """(n, V) logits of (n, H) hidden states, with graph; after `hidden`.

        Raises:
            ModelError: the model makes its logits without this body.
        """
        result = copy.copy(self._result)
        if isinstance(result, tuple):
            result = (rows[None], *result[1:])
        else:
            result["last_hidden_state"] = rows[None]
        with _replaced(self.body, result) as used:
            ids = torch.zeros(1, len(rows), dtype=torch.long, device=rows.device)
            options = {"use_cache": False} if "use_cache" in self._base_takes else {}
            logits: Tensor = self.base(input_ids=ids, **options).logits[0]
        if not used:
            raise ModelError(f"{type(self.base).__name__} does not make its logits from {type(self.body).__name__}.")
        return logits

    def forget(self) -> None:
        """Let go of what `hidden` made: all activations hang on its graph."""
        self._result = None

    def vocabulary(self) -> int:
        """V."""
        return int(self.base.get_output_embeddings().weight.shape[0])

    def width(self) -> int:
        """H."""
        return int(self.base.get_output_embeddings().weight.shape[1])

    def device(self) -> torch.device:
        """Where token ids belong."""
        return self.base.device

    @cached_property
    def above(self) -> set[nn.Module]:
        """The modules that do not belong to the body."""
        return set(self.base.modules()) - set(self.body.modules())

    @cached_property
    def _body_takes(self) -> set[str]:
        return forward_arguments(self.body)

    @cached_property
    def _base_takes(self) -> set[str]:
        return forward_arguments(self.base)

    def trains_head(self) -> bool:
        """Whether some parameter that requires a gradient is used above the body; a tied one is."""
        return any(p.requires_grad for module in self.above for p in module.parameters(recurse=False))


def split_model(model: nn.Module) -> SplitModel | None:
    """The two parts of a model; None for one whose parts cannot be told."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return None  # its hidden states have more positions than the batch
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        return None
    body, head = model.get_decoder(), model.get_output_embeddings()
    if not isinstance(body, nn.Module) or body is model or head is None or head in set(body.modules()):
        return None
    return SplitModel(model, body)


def forward_inputs(
    module: nn.Module, batch: Mapping[str, Tensor], accepted: set[str] | None = None
) -> dict[str, Any]:  # fmt: skip
    """What a forward pass is given: ids, mask, and positions that left padding does not shift; no cache.

    Args:
        accepted: the arguments that the module takes, where they are known.
    """
    accepted = accepted or forward_arguments(module)
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if "position_ids" in accepted:
        inputs["position_ids"] = (batch["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def forward_arguments(model: nn.Module) -> set[str]:
    """Names that the language model's own forward takes (below a PEFT wrapper, which takes anything)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return set(inspect.signature(base.forward).parameters)


@contextmanager
def _replaced(module: nn.Module, result: Any) -> Iterator[list[bool]]:
    """Let a module return `result` without running; the list is empty until it was called."""
    used: list[bool] = []
    own: Callable[..., Any] | None = module.__dict__.get("forward")  # accelerate may have put one there

    def forward(*_: Any, **__: Any) -> Any:
        used.append(True)
        return result

    module.forward = forward
    try:
        yield used
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own
