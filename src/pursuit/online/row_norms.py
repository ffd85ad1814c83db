"""Losses and row norms of the head's gradient, from hidden states, without that gradient and without all logits.

The gradient of an example's mean loss in the head's weight is G = (1/n) δᵀ h, (V, H), with δ (n, V) the gradient of the
token losses in h Wᵀ and h (n, H) the hidden states. Only the norms of its rows are wanted:
‖row v‖² = δ[:, v]ᵀ (h hᵀ) δ[:, v] / n², for which (n, n) numbers and a few columns of δ at a time suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuit.online.head import Head
from pursuit.online.scoring import Labelled

CACHED = 2**18  # numbers of a block on a CPU, so that all that is made of some logits is made while the cache has them
TINY = 1e-37  # the smallest float32 whose logarithm is still exact
Visit = Callable[[int, Tensor], None]  # (example, (V,) row norms of its gradient)


@dataclass(frozen=True)
class Losses:
    """Mean loss of each example, (B,), NaN where it has no label; logsumexp of the logits of each token, (n,)."""

    examples: Tensor
    normalisers: Tensor


def score(head: Head, tokens: Labelled, chunk: int, visit: Visit | None = None) -> Losses:
    """Loss of every example; its row norms go to `visit`, one example after the other.

    The logits of as many examples as fit into half of `chunk` are one product, held once; those of a single example
    that does not fit are made by columns, twice. So the cost is that of the head's product (twice that for examples too
    long), and min(n, H)/H of it for the norms of an example of n tokens.

    Args:
        chunk: bound on the numbers held at once (4 bytes each), beside a copy of the head's weight where the model
            itself makes one, because it is cast or has a LoRA.
        visit: not called for examples without a label.
    """
    device, vocabulary, dtype = tokens.hidden.device, head.vocabulary, head.product_dtype()
    losses = torch.full((len(tokens.counts),), torch.nan, device=device)
    normalisers = torch.zeros(len(tokens.hidden), device=device)
    starts = [0]
    for count in tokens.counts:
        starts.append(starts[-1] + count)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        weight = head.rows(0, vocabulary, dtype)
        groups = list(_groups(tokens.counts, vocabulary, chunk // 2))
        most = max((sum(tokens.counts[i] for i in group) for group, fits in groups if fits), default=0)
        memory = torch.empty(most, vocabulary, device=device)
        for group, fits in groups:
            here = slice(starts[group[0]], starts[group[-1] + 1])
            states, targets = tokens.hidden[here], tokens.targets[here]
            if fits:
                logits = _held(head, states.to(dtype), weight, targets, chunk, memory[: len(states)])
            else:
                logits = _streamed(head, states.to(dtype), weight, targets, chunk)
            normalisers[here] = logits.normaliser
            for example in group:
                rows = slice(starts[example] - here.start, starts[example + 1] - here.start)
                losses[example] = (logits.normaliser[rows] - logits.at_target[rows]).mean()
                if visit is not None:
                    visit(example, _row_norms(head, logits, rows, states[rows].float(), chunk))
    return Losses(losses, normalisers)


def mean_gradient_squares(head: Head, parts: Sequence[tuple[Labelled, Tensor]], chunk: int) -> Tensor:
    """Row by row, the mean square of the head's gradient of the mean loss over all tokens of `parts`, (V,).

    G = (1/N) Σ δ_t h_tᵀ over the N tokens, made by rows of the vocabulary and squared at once: (V, H) never exists.
    Costs two products of the head with these tokens.

    Args:
        parts: tokens and their `normalisers`, as `score` left them; the head's weight must still be the same.
    """
    total = sum(len(tokens.hidden) for tokens, _ in parts)
    first = parts[0][0].hidden
    squares = torch.zeros(head.vocabulary, device=first.device)
    if total == 0:
        return squares
    width = max(1, chunk // (4 * (total + first.shape[1])))
    dtype, factor = head.product_dtype(), head.scale / total
    with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
        for start in range(0, head.vocabulary, width):
            stop = min(start + width, head.vocabulary)
            rows, gradient = head.rows(start, stop, dtype), torch.zeros(1, device=first.device)
            for tokens, normalisers in parts:
                logits = head.finish(tokens.hidden.to(dtype) @ rows.T, start, stop)
                delta = _delta(head, logits, tokens.targets, normalisers, start)
                gradient = gradient + delta.T @ tokens.hidden.float()
            squares[start:stop] = gradient.mul_(factor).square_().mean(dim=1)
    return squares


@dataclass(frozen=True)
class _Logits:
    """What is made of the logits of n tokens.

    Attributes:
        normaliser, at_target: (n,) logsumexp, and the logit of the target.
        delta: (tokens, start, stop) → `divisors` × the gradient of each token's loss in h Wᵀ but for `head.scale`, in
            the vocabulary rows start … stop. To be asked for once: it may lie where the logits did.
        divisors: (n,).
    """

    normaliser: Tensor
    at_target: Tensor
    delta: Callable[[slice, int, int], Tensor]
    divisors: Tensor


def _held(head: Head, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, memory: Tensor) -> _Logits:
    """All logits at once in `memory`, (n, V), and there turned into exponentials, each once."""
    count, vocabulary = memory.shape
    _product(hidden, weight, memory, chunk)
    largest, sums, at_target = (torch.empty(count, device=memory.device) for _ in range(3))
    height = max(1, _block(chunk, memory.device) // vocabulary)
    for first in range(0, count, height):
        part = slice(first, first + height)
        logits = head.finish(memory[part], 0, vocabulary)
        at_target[part] = logits.gather(1, targets[part, None]).squeeze(1)
        torch.amax(logits, dim=1, out=largest[part])
        torch.sum(logits.sub_(largest[part, None]).exp_(), dim=1, out=sums[part])

    def delta(tokens: slice, start: int, stop: int) -> Tensor:
        exponentials = memory[tokens, start:stop]
        slope = None
        if head.softcap is not None:
            slope = head.slope(exponentials.clamp(min=TINY).log_().add_(largest[tokens, None]))
        _subtract(exponentials, targets[tokens], sums[tokens], start)
        return exponentials if slope is None else exponentials.mul_(slope)

    return _Logits(largest + sums.log(), at_target, delta, sums)


def _product(hidden: Tensor, weight: Tensor, out: Tensor, chunk: int) -> None:
    """hidden weightᵀ into float32 memory; another precision passes through a small piece of its own."""
    if hidden.dtype == out.dtype:
        torch.mm(hidden, weight.T, out=out)
        return
    height = max(1, chunk // 4 // out.shape[1])
    for first in range(0, len(hidden), height):
        out[first : first + height] = hidden[first : first + height] @ weight.T


def _streamed(head: Head, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> _Logits:
    """Logits by columns: once for what normalises them, once more for what is made of them."""
    normaliser = torch.full(targets.shape, -torch.inf, device=targets.device)
    at_target = torch.zeros(targets.shape, device=targets.device)

    def columns(tokens: slice, start: int, stop: int) -> Tensor:
        return head.finish(hidden[tokens] @ weight[start:stop].T, start, stop)

    for start, stop in _columns(len(weight), len(targets), chunk, targets.device):
        logits = columns(slice(None), start, stop)
        place, inside = _place(targets, start, stop)
        at_target += logits.gather(1, place).squeeze(1).where(inside, 0.0)
        normaliser = torch.logaddexp(normaliser, logits.logsumexp(dim=1))

    def delta(tokens: slice, start: int, stop: int) -> Tensor:
        return _delta(head, columns(tokens, start, stop), targets[tokens], normaliser[tokens], start)

    return _Logits(normaliser, at_target, delta, torch.ones_like(at_target))


def _row_norms(head: Head, logits: _Logits, tokens: slice, hidden: Tensor, chunk: int) -> Tensor:
    count, width = hidden.shape
    hidden = hidden / logits.divisors[tokens, None]
    gram = hidden @ hidden.T if count <= width else None
    norms = torch.empty(head.vocabulary, device=hidden.device)
    for start, stop in _columns(head.vocabulary, count, chunk, hidden.device):
        delta = logits.delta(tokens, start, stop)
        if gram is not None:
            norms[start:stop] = (gram @ delta).mul_(delta).sum(dim=0)
        else:  # more tokens than hidden numbers: the rows themselves are smaller
            norms[start:stop] = (delta.T @ hidden).square_().sum(dim=1)
    return norms.clamp_(min=0).sqrt_().mul_(abs(head.scale) / count)


def _delta(head: Head, logits: Tensor, targets: Tensor, normaliser: Tensor, start: int) -> Tensor:
    """Gradient of each token's loss in h Wᵀ, but for `head.scale`; overwrites the logits."""
    slope = head.slope(logits)
    delta = logits.sub_(normaliser[:, None]).exp_()
    _subtract(delta, targets, torch.ones_like(normaliser), start)
    return delta if slope is None else delta.mul_(slope)


def _subtract(rows: Tensor, targets: Tensor, numbers: Tensor, start: int) -> None:
    """Take each token's number off the column of its target, if that is here."""
    place, inside = _place(targets, start, start + rows.shape[1])
    rows.scatter_add_(1, place, -numbers.where(inside, 0.0)[:, None])


def _place(targets: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """(n, 1) column of each target in start … stop, and (n,) whether it lies there."""
    inside = (targets >= start) & (targets < stop)
    return (targets - start).clamp(0, stop - start - 1)[:, None], inside


def _groups(counts: Sequence[int], vocabulary: int, numbers: int) -> Iterator[tuple[list[int], bool]]:
    """Runs of examples whose logits are at most `numbers`; an example above that is alone, with False."""
    group: list[int] = []
    size = 0
    for example, count in enumerate(counts):
        if count == 0:
            continue
        need = count * vocabulary
        if group and size + need > numbers:
            yield group, size <= numbers
            group, size = [], 0
        group.append(example)
        size += need
    if group:
        yield group, size <= numbers


def _block(chunk: int, device: torch.device) -> int:
    return min(CACHED, chunk // 8) if device.type == "cpu" else chunk // 8


def _columns(vocabulary: int, tokens: int, chunk: int, device: torch.device) -> Iterator[tuple[int, int]]:
    width = max(1, _block(chunk, device) // max(tokens, 1))
    for start in range(0, vocabulary, width):
        yield start, min(start + width, vocabulary)
