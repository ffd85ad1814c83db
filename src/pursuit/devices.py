"""What a device needs beside the tensors on it: kernels that repeat, and to know when its memory is full."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

Result = TypeVar("Result")

# cuBLAS' products repeat only with a workspace of fixed size, and torch looks whether it has one at the very first
# product of a process: to say so when a training begins would be too late.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Not every full memory is a torch.OutOfMemoryError: the processor's, Apple's and the libraries' are a RuntimeError.
FULL = (
    "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory does not suffice, of this computer or of a device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def free_cached_memory() -> None:
    """Give back what torch keeps of a GPU for later; useful once the error, and what it holds, is gone."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, choose kernels that give the same bits each time. (A CPU's do, for the same number of threads.)"""
    if device.type != "cuda":
        yield
        return
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory = cast(Any, torch.utils.deterministic)
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False  # slow, and only finds bugs
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled


def forbidden_as_random(error: BaseException) -> bool:
    """Whether torch refused an operation that it has no deterministic kernel for; such a model computes without."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    return strict and isinstance(error, RuntimeError) and "determinis" in str(error)


class Repeatable:
    """Calls work so that it gives the same bits each time: on a GPU by kernels that do, where the model allows it.

    Attributes:
        strict: False once torch had no such kernel for an operation of this work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.strict = device, True

    def __call__(self, work: Callable[[], Result]) -> Result:
        """work()."""
        with deterministic(self.device):
            if self.strict:
                try:
                    return work()
                except RuntimeError as error:
                    if not forbidden_as_random(error):
                        raise
                self.strict = False
            if self.device.type == "cuda":
                torch.use_deterministic_algorithms(True, warn_only=True)
            return work()
