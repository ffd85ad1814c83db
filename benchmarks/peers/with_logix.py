"""LogIX: its LoGra, logged with its scheduler. It works on the sum of a batch's losses, not on their means."""

import tempfile
from pathlib import Path
from typing import Any

import logix
import torch
import yaml
from common import Row, answer, asked_llama, collate, in_order, make_rows, parse, token_losses

asked = parse()
model = asked_llama(asked, "" if asked.device == "cuda" else "eager")
folder = Path(tempfile.mkdtemp())
logging: dict[str, Any] = {"flush_threshold": 10**12, "num_workers": 0}
if asked.dtype == "bfloat16":
    logging["log_dtype"] = "float32"  # it keeps its log in NumPy, which has no bfloat16
settings = {"root_dir": str(folder / "run"), "logging": logging, "lora": {"init": "random", "rank": asked.side}}
(folder / "settings.yaml").write_text(yaml.safe_dump(settings))
run = logix.init("benchmark", config=str(folder / "settings.yaml"))
run.watch(model, name_filter=["lora_A", "lora_B"] if asked.lora else ["self_attn", "mlp"])
run.add_lora()
model.to(getattr(torch, asked.dtype))  # what it adds comes in float32
seen = 0


def work(rows: list[Row]) -> None:
    global seen
    run.logger.log_saver.buffer_clear()
    for some in in_order(rows, asked.batch):
        names = [str(seen + place) for place in range(len(some))]
        seen += len(some)
        batch = collate(some, asked.device)
        with run(data_id=names, mask=batch.get("attention_mask", torch.ones_like(batch["input_ids"]))):
            model.zero_grad()
            token_losses(model, batch).sum().backward()


for _ in logix.LogIXScheduler(run, lora="none", hessian="none", save="grad"):
    answer(work, make_rows(asked), asked, f"factored to {asked.side}×{asked.side} a matrix, in memory")
