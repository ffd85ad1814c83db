"""The published way of LESS: one row at a time, the whole gradient of the matrices, dense random signs to d.

The signs are drawn anew for every row, 2,048 coordinates at a time; 8192 numbers take minutes a row, so d is 512 here
and the figure for 8192 is 16 times as slow or more.
"""

import torch
from common import Row, answer, collate, losses, make_rows, matrices, parse, small_llama

DIMENSION, ROWS, BLOCK = 512, 1, 2048
asked = parse()
model = small_llama(asked.attention, asked.lora)
model.requires_grad_(False)
for name in matrices(model):
    model.get_submodule(name).requires_grad_(True)
weights = [p for p in model.parameters() if p.requires_grad]


def work(rows: list[Row]) -> torch.Tensor:
    found = []
    for one in rows:
        loss = losses(model, collate([one]))[0]
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
        generator, row = torch.Generator().manual_seed(0), torch.zeros(DIMENSION)
        for part in gradient.split(BLOCK):
            signs = torch.randint(0, 2, (len(part), DIMENSION), generator=generator).float().mul_(2).sub_(1)
            row += part @ signs
        found.append(row / DIMENSION**0.5)
    return torch.stack(found)


answer(work, make_rows(asked)[:ROWS], 1, f"whole gradients, dense signs to d={DIMENSION}, batches of one")
