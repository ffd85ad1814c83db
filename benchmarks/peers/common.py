"""The work that is given to every library alike, and the line that each answers with. Imports nothing of pursuit.

A small Llama of random weights, rows of random tokens, the gradient of each row's own mean loss over the tokens that it
learns by the 28 weight matrices of attention and MLP, or by the 56 of a LoRA on these, projected to `side` × `side`
numbers a matrix. Rows are 128 tokens long and learn all of them, or have the lengths and the share of answer of a real
pool's rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, LONGEST, VOCABULARY, COMPARED = 128, 512, 2048, 24


@dataclass(frozen=True)
class Row:
    """Token ids, and the place of the first that is learnt."""

    ids: list[int]
    start: int

    @property
    def labels(self) -> list[int]:
        """As transformers reads them: -100 where nothing is learnt."""
        return [-100] * self.start + self.ids[self.start :]


def parse() -> argparse.Namespace:
    """Rows, side, batch (rows at once), LoRA's rank, lengths, threads, from the command line; the threads are set."""
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 64), ("side", 16), ("batch", 16), ("lora", 0), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--projection", default="", help="pursuit's; what suits the matrices if not given")
    parser.add_argument("--lengths", help="JSON file: [tokens, place of the first that is learnt] of each row")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found


class LowRank(nn.Module):
    """A linear layer with a LoRA of random weights, so that both of its matrices have gradients."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, changed."""
        return self.base(x) + self.lora_B(self.lora_A(x))


def small_llama(attention: str = "sdpa", rank: int = 0) -> Any:
    """The same bits in every environment; with a LoRA of that rank, if any."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    kind: dict[str, Any] = {"attn_implementation": attention}
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=256, num_hidden_layers=4, intermediate_size=688, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=VOCABULARY, max_position_embeddings=LONGEST, tie_word_embeddings=False, use_cache=False,
        **kind,
    )).eval()  # fmt: skip
    for name in matrices(model) if rank else ():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LowRank(model.get_submodule(name), rank))
    return model


def matrices(model: nn.Module) -> list[str]:
    """Names of the linear layers whose gradients are wanted: the LoRA's, or those of attention and MLP."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if "lora_" in name] or [name for name in linear if "proj" in name]


def make_rows(asked: argparse.Namespace) -> list[Row]:
    """As many rows as are asked for, the same in every environment."""
    sizes = json.loads(Path(asked.lengths).read_text()) if asked.lengths else [[TOKENS, 1]] * asked.rows
    generator = torch.Generator().manual_seed(1)
    return [
        Row(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), start)
        for length, start in sizes[: asked.rows]
    ]


def in_order(rows: Sequence[Row], batch: int) -> list[list[Row]]:
    """Batches as a data loader makes them."""
    return [list(rows[begin : begin + batch]) for begin in range(0, len(rows), batch)]


def by_length(rows: Sequence[Row], batch: int) -> list[list[Row]]:
    """Rows of like lengths together, in batches of at most `batch` times 128 tokens, padding counted."""
    batches: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        if batches[-1] and len(batches[-1][0].ids) * (len(batches[-1]) + 1) > batch * TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """input_ids, labels, and attention_mask where some row is shorter than another."""
    longest = max(len(row.ids) for row in rows)
    pads = [longest - len(row.ids) for row in rows]
    ids = torch.tensor([row.ids + [0] * pad for row, pad in zip(rows, pads, strict=True)])
    labels = torch.tensor([row.labels + [-100] * pad for row, pad in zip(rows, pads, strict=True)])
    mask = torch.tensor([[1] * len(row.ids) + [0] * pad for row, pad in zip(rows, pads, strict=True)])
    return {"input_ids": ids, "labels": labels, **({"attention_mask": mask} if any(pads) else {})}


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(B, L-1) cross-entropy of each next token, 0 where nothing is learnt."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits, labels = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1), reduction="none").view(labels.shape)


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(B,) mean of each row."""
    return token_losses(model, batch).sum(dim=1) / (batch["labels"][:, 1:] >= 0).sum(dim=1)


def freeze(model: Any) -> None:
    """No gradient of any weight is asked for but that of the embedding, so that there is something to differentiate."""
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)


def _status(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024


def answer(work: Callable[[list[Row]], Tensor | None], rows: list[Row], batch: int, computed: str) -> None:
    """Do the work on one batch untimed and on all rows timed, and print what it took as one line of JSON.

    Args:
        work: rows to their (n, d) features, or None where a pass makes none.
        computed: what it was, in words.
    """
    work(rows[:batch])
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, wall = _status("VmRSS"), time.process_time(), time.perf_counter()
    features = work(rows)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found: dict[str, Any] = {
        "rows_a_cpu_second": len(rows) / cpu, "rows_a_second": len(rows) / wall, "added_mb": _status("VmHWM") - before,
        "computed": computed,
    }  # fmt: skip
    if features is not None:
        found["bytes_a_row"] = features.nbytes / len(features)
        unit = F.normalize(features[:COMPARED].float(), dim=1)
        upper = torch.triu_indices(len(unit), len(unit), offset=1)
        found["cosines"] = (unit @ unit.T)[upper[0], upper[1]].tolist()
    print(json.dumps(found))
