"""The published way of LESS: one row at a time, the whole gradient of the matrices, dense random signs to d.

The signs are drawn anew for every row, 2,048 coordinates at a time, or on a GPU, where they are drawn on it, 131,072;
8192 numbers take minutes a row on a CPU, so d is 512 here and the figure for 8192 is 16 times as slow or more.
"""

import torch
from common import Row, answer, asked_llama, collate, losses, make_rows, matrices, parse

asked = parse()
DIMENSION = 512
ROWS, BLOCK = (8, 1 << 17) if asked.device == "cuda" else (1, 2048)
model = asked_llama(asked)
model.requires_grad_(False)
for name in matrices(model):
    model.get_submodule(name).requires_grad_(True)
weights = [p for p in model.parameters() if p.requires_grad]


def projected(part: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Coordinates times their signs, on a GPU drawn as 0 and 1: twice the product less the sum is the same."""
    shape = len(part), DIMENSION
    if asked.device == "cuda":
        bits = torch.empty(shape, dtype=part.dtype, device=part.device).bernoulli_(0.5, generator=generator)
        return 2 * (part @ bits).float() - part.float().sum()
    return part @ torch.randint(0, 2, shape, generator=generator).to(part.dtype).mul_(2).sub_(1)


def work(rows: list[Row]) -> torch.Tensor:
    found = []
    for one in rows:
        loss = losses(model, collate([one], asked.device))[0]
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
        generator = torch.Generator(device=asked.device).manual_seed(0)
        row = torch.zeros(DIMENSION, device=asked.device)
        for part in gradient.split(BLOCK):
            row += projected(part, generator)
        found.append(row / DIMENSION**0.5)
    return torch.stack(found)


answer(work, make_rows(asked)[:ROWS], asked, f"whole gradients, dense signs to d={DIMENSION}, batches of one", 1)
