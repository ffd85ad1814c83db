"""What no library can be faster than: the forward pass, and forward + backward with frozen matrices."""

import sys

import torch
from common import answer, freeze, losses, parse, row_ids, small_llama

backward = "--backward" in sys.argv
sys.argv = [argument for argument in sys.argv if argument != "--backward"]
asked = parse()
model = small_llama(asked.attention)
freeze(model)


def work(ids: torch.Tensor) -> None:
    for some in ids.split(asked.batch):
        with torch.set_grad_enabled(backward):
            found = losses(model, some)
        if backward:
            torch.autograd.grad(found.sum(), model.get_input_embeddings().weight)


answer(work, row_ids(asked.rows), asked.batch, "nothing kept")
