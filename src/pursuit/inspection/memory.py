"""Memory in use and at its peak, on a GPU or of this process, and an estimate where it cannot be measured."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import nn

from pursuit.gradients.losses import LOGITS_AT_ONCE
from pursuit.gradients.split import split_model
from pursuit.models.trainable import parameter_count


def used_memory(device: torch.device) -> int | None:
    """Bytes in use now: torch's on a CUDA GPU, this process's on Linux, None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _process_bytes("VmRSS") if device.type == "cpu" else None


def reset_peak(device: torch.device) -> None:
    """Let the peak start anew from what is in use now, without what the process keeps for later use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")
    except (OSError, AttributeError):
        return  # not Linux, or not allowed: the peak is then that of the whole process so far


def peak_memory(device: torch.device) -> int | None:
    """Bytes in use at the worst moment since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_bytes("VmHWM") if device.type == "cpu" else None


def total_memory(device: torch.device) -> int | None:
    """Bytes that the device has; None unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _process_bytes(name: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as handle:
            line = next((line for line in handle if line.startswith(name + ":")), None)
    except OSError:
        return None
    return None if line is None else int(line.split()[1]) * 1024


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, frozen or not."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def estimated_peak(model: nn.Module, tokens: int) -> int:
    """Peak bytes of a training pass over `tokens` padded tokens, by counting [ours].

    What is in use once the model is loaded; four float32 numbers a trainable parameter (gradient, two moments, one for
    the projection); for every layer and token what backward needs: about 18 × hidden (8 of them for LoRA's dropout) and
    3 × intermediate numbers; and three float32 numbers a token and vocabulary entry for the logits and their gradient,
    as if every token were a response, of as many tokens as stand in memory at once.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    weight = next(iter(model.parameters()))
    activations = tokens * layers * (18 * hidden + 3 * intermediate) * weight.element_size()
    split = split_model(model)
    few = split is not None and not split.trains_head()
    numbers = tokens * config.vocab_size
    logits = 12 * (min(numbers, LOGITS_AT_ONCE) if few else numbers)
    loaded = max(weight_bytes(model), used_memory(weight.device) or 0)
    return loaded + 16 * parameter_count(model) + activations + logits
