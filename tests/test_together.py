"""Neighbouring parameters' blocks brought together."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.gradients.together import Together


@given(st.data(), st.lists(st.integers(1, 7), min_size=1, max_size=9), st.integers(0, 20))
def test_every_number_is_handed_over_once_in_its_place(data, widths, most):
    sizes = {f"p{place}": width for place, width in enumerate(widths)}
    rows = torch.arange(2 * sum(widths)).float().view(2, -1)
    blocks = dict(zip(sizes, rows.split(widths, dim=1), strict=True))
    found = torch.full_like(rows, -1)

    def consume(names, offset, block):
        size = sum(sizes[name] for name in names)
        assert len(names) == 1 or size <= most
        assert (found[:, offset : offset + size] == -1).all()
        found[:, offset : offset + size] = block.flatten(1)

    together = Together(sizes, most, consume)
    order = data.draw(st.permutations(list(sizes)))
    late = order[len(order) // 2 :]
    for name in order[: len(order) // 2]:
        together(name, blocks[name].view(2, 1, -1))
    assert together.waiting() == sorted(late)
    for name in late:
        together(name, blocks[name])
    assert not together.waiting()
    assert torch.equal(found, rows)
