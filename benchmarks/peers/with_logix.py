"""LogIX: its LoGra, logged with its scheduler. It works on the sum of a batch's losses, not on their means."""

import tempfile
from pathlib import Path

import logix
import torch
import torch.nn.functional as F
import yaml
from common import VOCABULARY, answer, parse, row_ids, small_llama

asked = parse()
model = small_llama("eager")
folder = Path(tempfile.mkdtemp())
logging = {"flush_threshold": 10**9, "num_workers": 0}
settings = {"root_dir": str(folder / "run"), "logging": logging, "lora": {"init": "random", "rank": asked.side}}
(folder / "settings.yaml").write_text(yaml.safe_dump(settings))
run = logix.init("benchmark", config=str(folder / "settings.yaml"))
run.watch(model, name_filter=["self_attn", "mlp"])
run.add_lora()
seen = 0


def work(ids: torch.Tensor) -> None:
    global seen
    for begin in range(0, len(ids), asked.batch):
        some = ids[begin : begin + asked.batch]
        names = [str(seen + place) for place in range(len(some))]
        seen += len(some)
        with run(data_id=names, mask=torch.ones_like(some)):
            model.zero_grad()
            logits = model(some).logits[:, :-1]
            F.cross_entropy(logits.reshape(-1, VOCABULARY), some[:, 1:].reshape(-1), reduction="sum").backward()


for _ in logix.LogIXScheduler(run, lora="none", hessian="none", save="grad"):
    answer(work, row_ids(asked.rows), asked.batch, f"factored to {asked.side}×{asked.side} a matrix, in memory")
