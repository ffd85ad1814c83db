"""bergson: its collector, in memory, weights frozen."""

import tempfile
from pathlib import Path

import torch
from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
from bergson.data import allocate_batches
from common import TOKENS, Row, answer, asked_llama, freeze, make_rows, matrices, parse
from datasets import Dataset
from datasets.table import InMemoryTable

asked = parse()
model = asked_llama(asked)
freeze(model)
wanted = {name.removeprefix("model.") for name in matrices(model)}
config = IndexConfig(
    run_path=str(Path(tempfile.mkdtemp()) / "index"), projection_dim=asked.side, projection_target="per_module",
    loss_reduction="mean",
)  # fmt: skip
config.partial_run_path.mkdir(parents=True, exist_ok=True)
processor = GradientProcessor(projection_dim=asked.side, projection_target="per_module")


def work(rows: list[Row]) -> torch.Tensor:
    lengths = [len(row.ids) for row in rows]
    table = InMemoryTable.from_pydict({
        "input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows], "length": lengths,
    })  # fmt: skip
    data = Dataset(table, fingerprint="rows")  # which cannot be computed with every pair of Python and pyarrow
    batches = allocate_batches(lengths, asked.batch * TOKENS)
    collector = InMemoryCollector(
        model=model.base_model, data=data, cfg=config, processor=processor, target_modules=wanted
    )
    computer = CollectorComputer(model, data, collector=collector, batches=batches, cfg=config)
    computer.run_with_collector_hooks("benchmark")
    return torch.cat([torch.as_tensor(collector.gradients[name]) for name in sorted(collector.gradients)], dim=1)


answer(work, make_rows(asked), asked, f"factored to {asked.side}×{asked.side} a matrix, in memory")
