"""What a GPU needs around its work; the flags are torch's own and can be set without one."""

from __future__ import annotations

import os

import pytest
import torch

from pursuit.devices import Repeatable, deterministic, out_of_memory

GPU = torch.device("cuda")


def strictness() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def test_full_memory_is_told_from_other_errors() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    assert out_of_memory(MemoryError())
    for words in (
        "CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED", "MPS backend out of memory (MPS allocated: 5 GB)",
    ):  # fmt: skip
        assert out_of_memory(RuntimeError(words))
    assert not out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not out_of_memory(ValueError("out of memory"))


def test_this_processors_full_memory_is_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_kernels_are_chosen_within_and_as_before_afterwards() -> None:
    before = strictness()
    with deterministic(GPU):
        assert strictness() == (True, False)
    with deterministic(torch.device("cpu")):
        assert strictness() == before
    assert strictness() == before
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]  # before the first product of this process


def test_work_without_such_a_kernel_is_done_all_the_same() -> None:
    before, seen = strictness(), []

    def work() -> int:
        seen.append(strictness())
        if seen[-1] == (True, False):
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set …")
        return 7

    repeatable = Repeatable(GPU)
    assert [repeatable(work), repeatable(work)] == [7, 7]
    assert seen == [(True, False), (True, True), (True, True)]  # not tried twice again
    assert strictness() == before


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Repeatable(GPU)(work)
    assert calls == [1]
