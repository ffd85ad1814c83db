"""LogIX: its LoGra, logged with its scheduler. It works on the sum of a batch's losses, not on their means."""

import tempfile
from pathlib import Path

import logix
import torch
import yaml
from common import Row, answer, collate, in_order, make_rows, parse, small_llama, token_losses

asked = parse()
model = small_llama("eager", asked.lora)
folder = Path(tempfile.mkdtemp())
logging = {"flush_threshold": 10**9, "num_workers": 0}
settings = {"root_dir": str(folder / "run"), "logging": logging, "lora": {"init": "random", "rank": asked.side}}
(folder / "settings.yaml").write_text(yaml.safe_dump(settings))
run = logix.init("benchmark", config=str(folder / "settings.yaml"))
run.watch(model, name_filter=["lora_A", "lora_B"] if asked.lora else ["self_attn", "mlp"])
run.add_lora()
seen = 0


def work(rows: list[Row]) -> None:
    global seen
    for some in in_order(rows, asked.batch):
        names = [str(seen + place) for place in range(len(some))]
        seen += len(some)
        batch = collate(some)
        with run(data_id=names, mask=batch.get("attention_mask", torch.ones_like(batch["input_ids"]))):
            model.zero_grad()
            token_losses(model, batch).sum().backward()


for _ in logix.LogIXScheduler(run, lora="none", hessian="none", save="grad"):
    answer(work, make_rows(asked), asked.batch, f"factored to {asked.side}×{asked.side} a matrix, in memory")
