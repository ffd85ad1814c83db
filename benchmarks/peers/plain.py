"""What no library can be faster than: the forward pass, and forward + backward with frozen matrices."""

import sys

import torch
from common import Row, answer, asked_llama, by_length, collate, freeze, losses, make_rows, parse

backward = "--backward" in sys.argv
sys.argv = [argument for argument in sys.argv if argument != "--backward"]
asked = parse()
model = asked_llama(asked)
freeze(model)


def work(rows: list[Row]) -> None:
    for some in by_length(rows, asked.batch):
        with torch.set_grad_enabled(backward):
            found = losses(model, collate(some, asked.device))
        if backward:
            found.sum().backward()
            model.zero_grad(set_to_none=True)


answer(work, make_rows(asked), asked, "nothing kept")
