"""What no library can be faster than: the forward pass, and forward + backward with frozen matrices."""

import sys

import torch
from common import Row, answer, by_length, collate, freeze, losses, make_rows, parse, small_llama

backward = "--backward" in sys.argv
sys.argv = [argument for argument in sys.argv if argument != "--backward"]
asked = parse()
model = small_llama(asked.attention, asked.lora)
freeze(model)


def work(rows: list[Row]) -> None:
    for some in by_length(rows, asked.batch):
        with torch.set_grad_enabled(backward):
            found = losses(model, collate(some))
        if backward:
            torch.autograd.grad(found.sum(), model.get_input_embeddings().weight)


answer(work, make_rows(asked), asked.batch, "nothing kept")
