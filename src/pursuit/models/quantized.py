"""Frozen weights in 4 bits (QLoRA, arXiv 2305.14314): a quarter of bfloat16's room, for a LoRA on a large model.

Backward goes through the weights as they are read back, so that the adapter's gradients are exact for that model. Eight
bits are not offered [ours]: LLM.int8 looks for outliers among all rows of a batch, and a row's gradient would then hang
on which others stand beside it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from pursuit.errors import ModelError

NUMBERS_A_BYTE = 2


def check_four_bits(name: str) -> None:
    """A ModelError that names the model, where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{name}: weights in 4 bits need one more package: pip install bitsandbytes")


def four_bit_options(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of transformers' `from_pretrained` for NF4 weights, their scales quantised too.

    Args:
        name: of the model, for the message.
        dtype: in which products are computed.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    check_four_bits(name)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": device}}


def entries(parameter: torch.Tensor) -> int:
    """Numbers that a parameter stands for: two a byte where it is packed."""
    return parameter.numel() * (NUMBERS_A_BYTE if hasattr(parameter, "quant_state") else 1)
