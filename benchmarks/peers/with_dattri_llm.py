"""dattri-llm: its hooks and LoGra projection, written to disk by its own callback."""

import shutil
import tempfile
from pathlib import Path

import torch
from common import answer, losses, parse, row_ids, small_llama
from dattri_llm import GradientStorageManager, HookManager, HookManagerConfig, OffloadCallback

asked = parse()
model = small_llama(asked.attention)
model.requires_grad_(False)
model.get_input_embeddings().weight.requires_grad_(True)
projection = {"style": "logra", "proj_dim": asked.side, "proj_max_batch_size": 8, "proj_type": "rademacher"}
config = HookManagerConfig(
    linear_io=[r"self_attn\.._proj", r"mlp\..*_proj"], projection_kwargs={"__default__": projection},
    capture_style="auto", include_frozen=True,
)  # fmt: skip
place = Path(tempfile.mkdtemp()) / "gradients"


def work(ids: torch.Tensor) -> None:
    shutil.rmtree(place, ignore_errors=True)
    storage = OffloadCallback(
        offload_interval=1, file_manager=GradientStorageManager(str(place)), recording_type="per_sample"
    )
    manager = HookManager(model, config=config, callbacks=[storage])
    with manager.collect():
        for begin in range(0, len(ids), asked.batch):
            model.zero_grad(set_to_none=True)
            losses(model, ids[begin : begin + asked.batch]).sum().backward()
    manager.remove()


answer(work, row_ids(asked.rows), asked.batch, f"factored to {asked.side}×{asked.side} a matrix, to disk")
