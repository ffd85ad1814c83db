"""Batches of random rows, and an example's lm_head gradient by autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pursuit.online.head import head_module
from tiny import VOCABULARY

EIGHT = (24, 17, 9, 24, 20, 13, 22, 11)


def make_batch(lengths: tuple[int, ...] = (24, 17, 9, 24), padding: str = "right", seed: int = 0) -> dict[str, Tensor]:
    """Random rows; the first third of each is a prompt, one label in five is ignored."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=generator)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[torch.rand(ids.shape, generator=generator) < 0.2] = -100
    for row, length in enumerate(lengths):
        used = slice(0, length) if padding == "right" else slice(longest - length, longest)
        outside = torch.ones(longest, dtype=torch.bool)
        outside[used] = False
        ids[row, outside], labels[row, outside], mask[row, outside] = 0, -100, 0
        labels[row, used.start : used.start + max(1, length // 3)] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def materialised(model: nn.Module, batch: dict[str, Tensor], row: int) -> tuple[float, Tensor]:
    """Loss of one example by the model's own forward, and the (V, H) gradient of the head's product by autograd."""
    module = head_module(model)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        product = output.detach().requires_grad_()  # h Wᵀ + b, before what the model makes of it
        seen.extend((inputs[0].detach(), product))
        return product

    hook = module.register_forward_hook(keep)
    one = {name: value[row : row + 1] for name, value in batch.items()}
    loss = model(**one).loss
    hook.remove()
    (delta,) = torch.autograd.grad(loss, seen[1])
    return float(loss.detach()), torch.einsum("btv,bth->vh", delta, seen[0])
