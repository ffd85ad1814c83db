"""The published way of LESS: one row at a time, the whole gradient of the matrices, dense random signs to d.

The signs are drawn anew for every row, 2,048 coordinates at a time; 8192 numbers take minutes a row, so d is 512 here
and the figure for 8192 is 16 times as slow or more.
"""

import torch
from common import answer, losses, parse, row_ids, small_llama

DIMENSION, ROWS, BLOCK = 512, 1, 2048
asked = parse()
model = small_llama(asked.attention)
for name, parameter in model.named_parameters():
    parameter.requires_grad_("proj" in name)
weights = [p for p in model.parameters() if p.requires_grad]


def work(ids: torch.Tensor) -> torch.Tensor:
    rows = []
    for one in ids:
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(losses(model, one[None])[0], weights)])
        generator, row = torch.Generator().manual_seed(0), torch.zeros(DIMENSION)
        for part in gradient.split(BLOCK):
            signs = torch.randint(0, 2, (len(part), DIMENSION), generator=generator).float().mul_(2).sub_(1)
            row += part @ signs
        rows.append(row / DIMENSION**0.5)
    return torch.stack(rows)


answer(work, row_ids(ROWS), 1, f"whole gradients, dense signs to d={DIMENSION}, batches of one")
