"""The work that is given to every library alike, and the line that each answers with. Imports nothing of pursuit.

A small Llama of random weights, rows of 128 random tokens, the gradient of each row's own mean loss over its 127 next
tokens by the 28 weight matrices of attention and MLP, projected to `side` × `side` numbers each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, VOCABULARY, COMPARED = 128, 2048, 24


def parse() -> argparse.Namespace:
    """Rows, side, batch (rows at once), threads, from the command line; the threads are set."""
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 64), ("side", 16), ("batch", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--attention", default="sdpa")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found


def small_llama(attention: str = "sdpa") -> Any:
    """The same bits in every environment."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=256, num_hidden_layers=4, intermediate_size=688, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=VOCABULARY, max_position_embeddings=TOKENS, tie_word_embeddings=False, use_cache=False,
        attn_implementation=attention,
    )).eval()  # fmt: skip


def row_ids(rows: int) -> Tensor:
    """(rows, 128) token ids."""
    return torch.randint(3, VOCABULARY, (rows, TOKENS), generator=torch.Generator().manual_seed(1))


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """(B,) mean cross-entropy of each row."""
    logits = model(input_ids=ids).logits[:, :-1]
    tokens = F.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1), reduction="none")
    return tokens.view(len(ids), -1).mean(dim=1)


def freeze(model: Any) -> None:
    """No gradient of any weight is asked for but that of the embedding, so that there is something to differentiate."""
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)


def _status(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024


def answer(work: Callable[[Tensor], Tensor | None], ids: Tensor, batch: int, computed: str) -> None:
    """Do the work on one batch untimed and on all rows timed, and print what it took as one line of JSON.

    Args:
        work: token ids to the (n, d) features, or None where a pass makes none.
        computed: what it was, in words.
    """
    work(ids[:batch])
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, wall = _status("VmRSS"), time.process_time(), time.perf_counter()
    features = work(ids)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found: dict[str, Any] = {
        "rows_a_cpu_second": len(ids) / cpu, "rows_a_second": len(ids) / wall, "added_mb": _status("VmHWM") - before,
        "computed": computed,
    }  # fmt: skip
    if features is not None:
        found["bytes_a_row"] = features.nbytes / len(features)
        unit = F.normalize(features[:COMPARED].float(), dim=1)
        upper = torch.triu_indices(len(unit), len(unit), offset=1)
        found["cosines"] = (unit @ unit.T)[upper[0], upper[1]].tolist()
    print(json.dumps(found))
