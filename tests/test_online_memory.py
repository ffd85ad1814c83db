"""A vocabulary of 256k: memory is bounded by `chunk`, whatever the batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("the peak of a part of a process is read from Linux' /proc", allow_module_level=True)

VOCABULARY, ROWS, TOKENS = 2**18, 4, 65
MEGABYTE = 2**20
LOGITS = ROWS * (TOKENS - 1) * VOCABULARY * 4 / MEGABYTE  # 256 MB
SLACK = 24  # of the allocator, the sketch's tables (3 MB) and the forward of the layers, in MB

SCRIPT = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from pursuit.online import OptBatch

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

vocabulary, rows, tokens, chunk, frozen = (int(value) for value in sys.argv[1:])
torch.set_num_threads(1)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=vocabulary, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
))
model.lm_head.requires_grad_(not frozen)
ids = torch.randint(3, vocabulary, (rows, tokens))
batch = {"input_ids": ids, "labels": ids.clone()}
selector = OptBatch(prune=0.5, chunk=chunk)
selector(model, {name: value[:2, :8] for name, value in batch.items()})  # libraries, the check of the head
selector._moment.update(torch.rand(vocabulary), vocabulary, torch.device("cpu"))
selector._pending.clear()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from what is held now
before = status("VmRSS")
selector(model, batch)
if frozen:
    selector.observe(model)
print(status("VmHWM") - before)
"""


def added_megabytes(chunk: int, frozen: bool = False) -> float:
    """Peak resident memory that one choice adds, in a process of its own."""
    numbers = [str(int(number)) for number in (VOCABULARY, ROWS, TOKENS, chunk, frozen)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *numbers], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


@pytest.mark.parametrize("chunk", [2**21, 2**23, 2**26])
def test_a_choice_adds_no_more_than_its_chunk(chunk: int) -> None:
    added = added_megabytes(chunk)
    assert added < 4 * chunk / MEGABYTE + SLACK
    assert added < LOGITS


def test_the_moment_of_a_frozen_head_does_neither() -> None:
    assert added_megabytes(2**22, frozen=True) < 4 * 2**22 / MEGABYTE + SLACK
