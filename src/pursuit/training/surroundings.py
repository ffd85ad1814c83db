"""What a training needs around it: the caller's randomness untouched, silent libraries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from pursuit.models.trainable import trainable_parameters


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's random states as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Trained weights in float32 for as long as they are trained: small steps would be lost in bfloat16 [ours]."""
    before = {parameter: parameter.dtype for parameter in trainable_parameters(model).values()}
    try:
        for parameter in before:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in before.items():
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
