"""Which parameters give gradients: a new LoRA, an existing adapter, or named weights of the model itself."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pursuit.errors import ModelError
from pursuit.files import sha256_file
from pursuit.models.hub import ask_hub
from pursuit.recipes import Lora

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the head


def lora_targets(model: nn.Module) -> list[str]:
    """Names of the attention projections, as the shortest suffixes that select them and no other layer (ours).

    ["k_proj", "o_proj", "q_proj", "v_proj"] for Llama, Qwen, Gemma and Mistral; ["c_attn", "attn.c_proj"] for GPT-2,
    whose MLP has a c_proj too. Found by structure: linear layers below a module named like attention.

    Raises:
        ModelError: no such layer; the message lists what there is to name in `targets`.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    attention = [n for n in linear if any(re.search("attn|attention", part, re.I) for part in n.split(".")[:-1])]
    if not attention:
        leaves = sorted({name.rpartition(".")[2] for name in linear})
        raise ModelError(
            f"{type(model).__name__}: no attention projections were found for LoRA. Name the layers to adapt in the "
            f"LoRA targets; linear layers here: {', '.join(leaves[:20]) or 'none'}."
        )
    others = set(linear) - set(attention)
    return sorted({_shortest_suffix(name, others) for name in attention})


def _shortest_suffix(name: str, others: set[str]) -> str:
    parts = name.split(".")
    for start in range(len(parts) - 1, 0, -1):
        suffix = ".".join(parts[start:])
        if not any(other == suffix or other.endswith("." + suffix) for other in others):
            return suffix
    return name


def prepare_trainable(
    model: PreTrainedModel, *, lora: Lora | None = None, adapter: str | os.PathLike[str] | None = None,
    weights: Sequence[str] = (), seed: int = 0,
) -> PreTrainedModel | PeftModel:  # fmt: skip
    """Choose what is trained, and so which gradients describe an example. Everything else is frozen.

    Give at most one of `lora` (a new adapter; the default), `adapter` and `weights`.

    Args:
        model: the base model; a LoRA is put into it in place.
        lora: a new adapter: B zero, A drawn from `seed` alone, the same bits each time.
        adapter: folder (or hub id) of an existing peft adapter, made trainable.
        weights: patterns of the model's own parameter names, such as "model.layers.1?.mlp.*" or "lm_head.weight".
        seed: of a new adapter's initialisation.

    Raises:
        ModelError: targets or patterns that match nothing, or an adapter that cannot be read or does not fit.
    """
    if sum((lora is not None, adapter is not None, bool(weights))) > 1:
        raise ModelError("Give only one of: a new LoRA, an existing adapter, weights of the model itself.")
    model.requires_grad_(False)
    if weights:
        return _train_weights(model, weights)
    return _load_adapter(model, adapter) if adapter is not None else _new_lora(model, lora or Lora(), seed)


def _new_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    targets = list(lora.targets) if lora.targets is not None else lora_targets(model)
    every = targets == [ALL_LINEAR]
    ends = ("",) if every else tuple("." + target for target in targets)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if every else targets,
        fan_in_fan_out=any(isinstance(m, Conv1D) for n, m in model.named_modules() if ("." + n).endswith(ends)),
    )  # fmt: skip
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"LoRA targets {targets} do not fit {type(model).__name__}: {error}") from error
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # drawn on the CPU by name, so that no device and no other use of randomness changes a bit
        for name, parameter in trainable_parameters(adapted).items():
            if "lora_A" in name:
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return adapted.eval()


def adapter_digest(adapter: str | os.PathLike[str]) -> str:
    """SHA-256 of an adapter's weights.

    Raises:
        ModelError: they cannot be found.
    """
    try:
        return sha256_file(_adapter_folder(adapter) / ADAPTER_WEIGHTS)
    except OSError as error:
        raise ModelError(f"{adapter}: this adapter could not be read: {' '.join(str(error).split())[:300]}") from error


def _adapter_folder(adapter: str | os.PathLike[str]) -> Path:
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        ask_hub(os.fspath(adapter), file="adapter_config.json")
        folder = Path(snapshot_download(os.fspath(adapter), allow_patterns=["adapter_*.json", "*.safetensors"]))
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise ModelError(
            f"{adapter}: no {ADAPTER_WEIGHTS} here. Save the adapter with peft's save_pretrained, which writes "
            "safetensors (pickled adapters are not read)."
        )
    return folder


def _load_adapter(model: PreTrainedModel, adapter: str | os.PathLike[str]) -> PeftModel:
    try:
        folder = _adapter_folder(adapter)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{adapter}: this adapter could not be loaded into {type(model).__name__}: {reason} "
            "Give a folder written by peft's save_pretrained, made for this model."
        ) from error


def _train_weights(model: PreTrainedModel, patterns: Sequence[str]) -> PreTrainedModel:
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ModelError(f"No weight is named like {pattern!r}. Names here: {', '.join(_spread(names, 6))}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    return model


def _spread(names: Sequence[str], count: int) -> list[str]:
    """`count` names taken evenly from the list, its first and last among them."""
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)] if len(names) > count else [*names]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with requires_grad by clean name, sorted by name: the coordinates of every gradient.

    A name is that of the adapted layer in the base model ("model.layers.0.self_attn.q_proj.lora_A.weight"), without
    the wrapper's prefix and the adapter's name, so it stays the same however the adapter was made or loaded.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if isinstance(model, PeftModel):
        adapter = re.escape(model.active_adapter)
        found = {
            re.sub(rf"\.{adapter}(?=\.|$)", "", name.removeprefix("base_model.model.")): parameter
            for name, parameter in found.items()
        }
    return dict(sorted(found.items()))


def parameter_count(model: nn.Module) -> int:
    """P: how many numbers one example's gradient has."""
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())
