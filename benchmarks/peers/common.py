"""The work that is given to every library alike, and the line that each answers with. Imports nothing of pursuit.

A Llama of random weights, rows of random tokens, the gradient of each row's own mean loss over the tokens that it
learns by the weight matrices of attention and MLP (28 of the small Llama, 210 of the other), or by the twice as many of
a LoRA on these, projected to `side` × `side` numbers a matrix. Rows are 128 tokens long and learn all of them, or have
the lengths and the share of answer of a real pool's rows. On a CPU it is CPU time that counts, of one thread; on a GPU
it is wall time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, LONGEST, COMPARED = 128, 512, 24
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 688, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": 2048, "max_position_embeddings": LONGEST, "tie_word_embeddings": False,
    },
    "smollm2": {  # as SmolLM2-135M is built
        "hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
}  # fmt: skip


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
    """What is asked for on the command line: `batch` is rows at once, `lora` its rank. The threads are set.

    Without `--threads` it is one on a CPU, and as many as torch takes beside a GPU.
    """
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 64), ("side", 16), ("batch", 16), ("lora", 0), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for option, choices in (
        ("--device", ("cpu", "cuda")), ("--dtype", ("float32", "bfloat16")), ("--size", tuple(SIZES))
    ):  # fmt: skip
        parser.add_argument(option, choices=choices, default=choices[0])
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--projection", default="", help="pursuit's; what suits the matrices if not given")
    parser.add_argument("--lengths", help="JSON file: [tokens, place of the first that is learnt] of each row")
    found = parser.parse_args()
    if found.threads or found.device == "cpu":
        torch.set_num_threads(found.threads or 1)
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


def asked_llama(asked: argparse.Namespace, attention: str = "") -> Any:
    """The model of the command line, where and in what it is asked for; with another attention if one is named."""
    return small_llama(attention or asked.attention, asked.lora, asked.size, asked.device, asked.dtype)


def small_llama(
    attention: str = "sdpa", rank: int = 0, size: str = "small", device: str = "cpu", dtype: str = "float32"
) -> Any:
    """The same bits in every environment; with a LoRA of that rank, if any. It is made on the CPU in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    kind: dict[str, Any] = {**SIZES[size], "attn_implementation": attention}
    model = LlamaForCausalLM(LlamaConfig(use_cache=False, **kind)).eval()
    for name in matrices(model) if rank else ():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LowRank(model.get_submodule(name), rank))
    return model.to(device=torch.device(device), dtype=getattr(torch, dtype))


def matrices(model: nn.Module) -> list[str]:
    """Names of the linear layers whose gradients are wanted: the LoRA's, or those of attention and MLP."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if "lora_" in name] or [name for name in linear if "proj" in name]


def make_rows(asked: argparse.Namespace) -> list[Row]:
    """As many rows as are asked for, the same in every environment."""
    sizes = json.loads(Path(asked.lengths).read_text()) if asked.lengths else [[TOKENS, 1]] * asked.rows
    generator, vocabulary = torch.Generator().manual_seed(1), SIZES[asked.size]["vocab_size"]
    return [
        Row(torch.randint(3, vocabulary, (length,), generator=generator).tolist(), start)
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


def collate(rows: Sequence[Row], device: str = "cpu") -> dict[str, Tensor]:
    """input_ids, labels, and attention_mask where some row is shorter than another, on that device."""
    longest = max(len(row.ids) for row in rows)
    pads = [longest - len(row.ids) for row in rows]
    ids = torch.tensor([row.ids + [0] * pad for row, pad in zip(rows, pads, strict=True)])
    labels = torch.tensor([row.labels + [-100] * pad for row, pad in zip(rows, pads, strict=True)])
    mask = torch.tensor([[1] * len(row.ids) + [0] * pad for row, pad in zip(rows, pads, strict=True)])
    made = {"input_ids": ids, "labels": labels, **({"attention_mask": mask} if any(pads) else {})}
    return {name: tensor.to(device) for name, tensor in made.items()}


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(B, L-1) cross-entropy of each next token, 0 where nothing is learnt."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits, labels = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(B,) mean of each row."""
    return token_losses(model, batch).sum(dim=1) / (batch["labels"][:, 1:] >= 0).sum(dim=1)


def freeze(model: Any) -> None:
    """No gradient of any weight is asked for but that of the embedding, so that there is something to differentiate.

    The gradient of an embedding that is the head as well would be work that nobody asked for: there it is the
    embedding's output that is differentiated, and the last norm's weight, since bergson looks for some trainable one.
    """
    model.requires_grad_(False)
    embedding = model.get_input_embeddings()
    if embedding.weight is not model.get_output_embeddings().weight:
        embedding.weight.requires_grad_(True)
        return
    embedding.register_forward_hook(lambda module, given, output: output.requires_grad_(True))
    model.base_model.norm.weight.requires_grad_(True)


def _status(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024


def _on_cpu(work: Callable[[], Tensor | None]) -> tuple[Tensor | None, float, float]:
    """What it gives, the CPU seconds that it took and the MB that it added to what was resident."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.process_time()
    features = work()
    return features, time.process_time() - start, _status("VmHWM") - before


def _on_gpu(work: Callable[[], Tensor | None]) -> tuple[Tensor | None, float, float]:
    """The same in seconds of wall time, and MB of the GPU's memory."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    features = work()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return features, seconds, (torch.cuda.max_memory_allocated() - before) / 2**20


def _cosines(features: Tensor, device: str) -> list[float]:
    """Of every two rows. By parts of the columns: all coordinates of the larger model are 106 million."""
    products = torch.zeros(len(features), len(features), dtype=torch.float64, device=device)
    for part in features.split(1 << 22, dim=1):
        part = part.to(device=device, dtype=torch.float32)
        products += part @ part.T
    norms = products.diagonal().sqrt().clamp_min(1e-12)
    upper = torch.triu_indices(len(features), len(features), offset=1, device=device)
    found: list[float] = (products / norms[:, None] / norms)[upper[0], upper[1]].tolist()
    return found


def answer(
    work: Callable[[list[Row]], Tensor | None], rows: list[Row], asked: argparse.Namespace, computed: str,
    batch: int = 0,
) -> None:  # fmt: skip
    """Do the work on one batch untimed and print a line; then, on each line of the input, do it on all rows, timed, and
    print what it took as one line of JSON. (See `benchmarks.processes`.)

    On a GPU all rows are gone over untimed as well, since kernels are chosen at their first use. Side 0 is only
    compared with: its time means nothing.

    Args:
        work: rows to their (n, d) features, or None where a pass makes none.
        computed: what it was, in words.
        batch: rows at once if they are not as many as asked for.
    """
    cuda = asked.device == "cuda"
    if asked.side:
        work(rows[: batch or asked.batch])
    if asked.side and cuda:
        work(rows)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        features, seconds, added = (_on_gpu if cuda else _on_cpu)(lambda: work(rows))
        found: dict[str, Any] = {"rate": len(rows) / seconds, "added_mb": added, "computed": computed}
        if features is not None:
            found["bytes_a_row"] = features.nbytes / len(features)
            found["cosines"] = _cosines(features[:COMPARED], asked.device)
        del features
        print(json.dumps(found), flush=True)
