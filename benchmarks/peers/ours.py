"""pursuit: features as extraction makes them, of unit length, float16. `--side 0`: all coordinates, for comparison."""

import torch
from common import TOKENS, Row, answer, asked_llama, make_rows, matrices, parse

from benchmarks.rows import KnownRows
from pursuit.batches import plan_batches
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.extract import batch_features, projections
from pursuit.gradients.precondition import Preconditioning
from pursuit.recipes import ProjectionKind, Recipe

asked = parse()
model = asked_llama(asked)
learnt = matrices(model)
model.requires_grad_(False)
for name in learnt:
    model.get_submodule(name).requires_grad_(True)
# a LoRA's gradients are small already: they are formed, and then projected, if nothing else is asked for
kind: ProjectionKind = (asked.projection or ("sparse" if asked.lora else "factored")) if asked.side else "none"
recipe = Recipe(projection=kind, dimension=len(learnt) * asked.side**2, preconditioner="sgd")
sketch, projection = projections(model, recipe)
direction, gradients = Preconditioning("sgd", None, sketch=sketch), ExampleGradients(model, sketch=sketch)


def work(rows: list[Row]) -> torch.Tensor:
    known = KnownRows([row.ids for row in rows], learnt_from=[row.start for row in rows])
    found = torch.empty(len(known), projection.dimension, dtype=torch.float16)  # as a shard is filled
    for batch in plan_batches(range(len(known)), known.lengths, asked.batch * TOKENS):
        found[batch] = batch_features(gradients, known, batch, projection, direction)["features"].half()
    return found


what = {
    "factored": f"factored to {asked.side}×{asked.side} a matrix", "sparse": f"projected to {recipe.dimension:,}",
    "tensorsketch": f"sketched to {recipe.dimension:,}",
    "none": "all coordinates",
}[kind]  # fmt: skip
answer(work, make_rows(asked), asked, f"{what}, unit rows in float16")
