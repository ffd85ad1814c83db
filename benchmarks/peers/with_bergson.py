"""bergson: its collector, in memory, weights frozen."""

import tempfile
from pathlib import Path

import torch
from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
from common import TOKENS, answer, freeze, parse, row_ids, small_llama
from datasets import Dataset

asked = parse()
model = small_llama(asked.attention)
freeze(model)
config = IndexConfig(
    run_path=str(Path(tempfile.mkdtemp()) / "index"), projection_dim=asked.side, projection_target="per_module",
    loss_reduction="mean",
)  # fmt: skip
config.partial_run_path.mkdir(parents=True, exist_ok=True)
processor = GradientProcessor(projection_dim=asked.side, projection_target="per_module")


def work(ids: torch.Tensor) -> torch.Tensor:
    count = len(ids)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "length": [TOKENS] * count})
    batches = [list(range(i, min(i + asked.batch, count))) for i in range(0, count, asked.batch)]
    collector = InMemoryCollector(model=model.base_model, data=data, cfg=config, processor=processor)
    computer = CollectorComputer(model, data, collector=collector, batches=batches, cfg=config)
    computer.run_with_collector_hooks("benchmark")
    return torch.cat([torch.as_tensor(collector.gradients[name]) for name in sorted(collector.gradients)], dim=1)


answer(work, row_ids(asked.rows), asked.batch, f"factored to {asked.side}×{asked.side} a matrix, in memory")
