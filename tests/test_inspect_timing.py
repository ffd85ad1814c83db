"""What timed batches tell: seconds of a batch and of a token, the rows that are timed, memory at the worst moment."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.inspection.measure import fitted, spread, time_batches
from pursuit.inspection.memory import estimated_peak, peak_memory, reset_peak, used_memory
from pursuit.inspection.predict import at_rates, padded_tokens, planned_batches, predict_memory
from pursuit.inspection.prospects import Measurement, Timing
from pursuit.models.trainable import prepare_trainable
from pursuit.recipes import Recipe
from tiny import tiny_model

CPU = torch.device("cpu")

lengths_and_budget = st.tuples(st.lists(st.integers(1, 90), min_size=1, max_size=80), st.integers(1, 300))


@given(lengths_and_budget)
def test_planned_tokens_are_those_of_all_rows_with_their_padding(drawn: tuple[list[int], int]) -> None:
    lengths, budget = np.array(drawn[0], dtype=np.int32), drawn[1]
    batches = planned_batches(lengths, Recipe(batch_tokens=budget, shard_rows=16))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert padded_tokens(lengths, batches) == sum(len(batch) * max(lengths[batch]) for batch in batches)


@given(lengths_and_budget)
def test_timed_batches_are_spread_over_lengths_without_repeats(drawn: tuple[list[int], int]) -> None:
    lengths = np.array(drawn[0], dtype=np.int32)
    batches = planned_batches(lengths, Recipe(batch_tokens=drawn[1], shard_rows=16))
    sample = spread(batches, lengths, 5)
    assert 1 <= len(sample) <= 5
    assert len({tuple(batch) for batch in sample}) == len(sample)
    assert all(batch in batches for batch in sample)


def sleeper(seconds_per_token: float, lengths: np.ndarray) -> Callable[[list[int]], None]:
    return lambda rows: time.sleep(seconds_per_token * len(rows) * int(lengths[rows[0]]))


def test_timing_finds_the_rate_within_its_time() -> None:
    lengths = np.array([10] * 50 + [100] * 50, dtype=np.int32)
    batches = planned_batches(lengths, Recipe(batch_tokens=1000))
    begun = time.perf_counter()
    timing = time_batches(batches, lengths, sleeper(1e-4, lengths), 0.4, CPU)
    assert time.perf_counter() - begun < 3
    assert timing.seconds_per_token == pytest.approx(1e-4, rel=0.5)
    assert timing.largest <= 1000


def test_timing_goes_on_with_half_the_rows_when_memory_runs_out() -> None:
    lengths = np.full(64, 10, dtype=np.int32)

    def work(rows: list[int]) -> None:
        if len(rows) > 8:
            raise MemoryError
        time.sleep(1e-4 * len(rows))

    timing = time_batches([list(range(64))], lengths, work, 1.0, CPU)
    assert timing.largest == 80


def test_peak_memory_is_that_of_the_worst_moment() -> None:
    reset_peak(CPU)
    before = used_memory(CPU)
    if before is None:
        pytest.skip("this system does not tell a process's memory")
    block = torch.ones(16 << 20)  # 64 MiB
    del block
    peak = peak_memory(CPU)
    assert peak is not None
    assert 60 << 20 < peak - before < 200 << 20


def test_measured_memory_is_scaled_to_a_full_batch() -> None:
    lengths = np.full(64, 10, dtype=np.int32)
    small = Timing(0.0, 1e-3, 1.0, 1, 80, 80, before=1000, peak=1080)
    batches = [list(range(64))]
    model = prepare_trainable(tiny_model("llama"))
    memory = predict_memory(model, lengths, batches, batches[:1], Measurement("cpu", small, small))
    assert memory.bytes == 1000 + 80 * 640 // 80
    assert "scaled to 640" in memory.how
    assert "counted" in predict_memory(model, lengths, batches, batches, None).how
    assert estimated_peak(model, 64_000) - estimated_peak(model, 640) > 63_000 * 512 * 12  # the logits alone


def test_batches_of_a_gpu_cost_something_whatever_is_in_them() -> None:
    """As seen on one: the same 0.2 s up to 27,000 tokens, then by tokens."""
    sizes = np.array([512, 1024, 8192, 16384, 32768, 65536])
    took = np.maximum(0.2, 7.4e-6 * sizes)
    rates = dict(zip(sizes.tolist(), (sizes / took).tolist(), strict=True))
    for batches in ([100, 700, 5000, 16384], [40000, 65536], [200_000]):
        expected = np.maximum(0.2, 7.4e-6 * np.array(batches)).sum()
        assert at_rates(rates, np.array(batches)) == pytest.approx(expected, rel=0.05)
    by_tokens = dict.fromkeys((512, 1024), 5000.0)
    assert at_rates(by_tokens, np.array([10, 300, 900, 4096])) == pytest.approx(5306 / 5000)
    assert at_rates({512: 100.0}, np.array([256])) == pytest.approx(2.56)


@given(st.floats(0, 1), st.floats(1e-6, 1e-3), st.lists(st.integers(100, 60000), min_size=2, max_size=5, unique=True))
def test_what_a_batch_and_a_token_cost_is_found(each_batch: float, each_token: float, sizes: list[int]) -> None:
    took = each_batch + each_token * np.array(sizes)
    found = fitted(np.array(sizes, float), took, fixed=True)
    predicted = found[0] + found[1] * np.array(sizes)
    np.testing.assert_allclose(predicted, took, rtol=1e-5)
    assert fitted(np.array(sizes, float), took, fixed=False) == (0.0, pytest.approx((took / sizes).mean()))
