"""pursuit: features as extraction makes them, of unit length, float16. `--side 0`: all coordinates, for comparison."""

import torch
from common import TOKENS, answer, parse, row_ids, small_llama

from benchmarks.rows import KnownRows
from pursuit.gradients.extract import batch_features, projections
from pursuit.gradients.precondition import Preconditioning
from pursuit.recipes import Recipe

asked = parse()
model = small_llama(asked.attention)
for name, parameter in model.named_parameters():
    parameter.requires_grad_("proj" in name)
recipe = Recipe(projection="factored" if asked.side else "none", dimension=28 * asked.side**2, preconditioner="sgd")
factors, projection = projections(model, recipe)
direction = Preconditioning("sgd", None, factors=factors)


def work(ids: torch.Tensor) -> torch.Tensor:
    rows, found = KnownRows(ids.tolist(), learnt_from=0), []
    for begin in range(0, len(ids), asked.batch):
        batch = list(range(begin, min(begin + asked.batch, len(ids))))
        found.append(batch_features(model, rows, batch, projection, direction)["features"].half())
    return torch.cat(found)


what = f"factored to {asked.side}×{asked.side} a matrix" if asked.side else f"all coordinates, {TOKENS} tokens"
answer(work, row_ids(asked.rows), asked.batch, f"{what}, unit rows in float16")
