"""What a training needs around it: kernels that repeat, the caller's randomness untouched, silent libraries."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from transformers.utils import logging as transformers_logging


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
def deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, choose kernels that give the same bits each time. (A CPU's do, for the same number of threads.)"""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory = cast(Any, torch.utils.deterministic)
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False  # slow, and only finds bugs
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled


def forbidden_as_random(error: RuntimeError) -> bool:
    """Whether torch refused an operation that it has no deterministic kernel for; such a model trains without."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    return strict and "determinis" in str(error)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
