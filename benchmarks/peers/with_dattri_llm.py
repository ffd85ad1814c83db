"""dattri-llm: its hooks and LoGra projection, written to disk by its own callback."""

import shutil
import tempfile
from pathlib import Path

from common import Row, answer, asked_llama, collate, freeze, in_order, losses, make_rows, parse
from dattri_llm import GradientStorageManager, HookManager, HookManagerConfig, OffloadCallback

asked = parse()
model = asked_llama(asked)
freeze(model)
projection = {"style": "logra", "proj_dim": asked.side, "proj_max_batch_size": 8, "proj_type": "rademacher"}
config = HookManagerConfig(
    linear_io=[r"lora_[AB]"] if asked.lora else [r"self_attn\.._proj", r"mlp\..*_proj"],
    projection_kwargs={"__default__": projection}, capture_style="auto", include_frozen=True,
)  # fmt: skip
place = Path(tempfile.mkdtemp()) / "gradients"


def work(rows: list[Row]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    storage = OffloadCallback(
        offload_interval=1, file_manager=GradientStorageManager(str(place)), recording_type="per_sample"
    )
    manager = HookManager(model, config=config, callbacks=[storage])
    with manager.collect():
        for some in in_order(rows, asked.batch):
            model.zero_grad(set_to_none=True)
            losses(model, collate(some, asked.device)).sum().backward()
    manager.remove()


answer(work, make_rows(asked), asked, f"factored to {asked.side}×{asked.side} a matrix, to disk")
