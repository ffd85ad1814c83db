"""What an optimizer would make of a gradient: the step direction of SGD, sign descent or Adam at a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuit.gradients.scratch import Scratch
from pursuit.gradients.sketch import MatrixSketch, reduced
from pursuit.recipes import Preconditioner


@dataclass(frozen=True)
class AdamState:
    """Where Adam stood at a checkpoint: the same for every example.

    Attributes:
        exp_avg, exp_avg_sq: moments by parameter name, each of the parameter's shape.
        step: optimizer steps taken so far.
    """

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    step: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


class Preconditioning:
    """Turns plain gradients into update directions, in place (LESS, arXiv 2402.04333, section 3.1).

    "sgd": the gradient. "sign": its sign. "adam": the step that Adam would take, m̂' / (√v̂' + ε) with bias correction
    at step t + 1. "less": m' / √(v' + ε) as LESS' released code has it: ε inside the root and no bias correction.
    LoRA's second moments are about 1e-14, far below ε = 1e-8, so "less" is in effect a constant times 0.9 m + 0.1 g:
    momentum plus plain gradient. It is kept to be faithful.

    Args:
        kind: one of these.
        state: Adam's moments at the checkpoint; needed by "less" and "adam".
        momentum: False drops the term β₁m that all examples share [ours].
        device: where the gradients will be.
        sketch: with which gradients of matrices are projected before they are formed. Of a matrix' second moment only
            the best r cᵀ in the logarithm is then used, and a row's own g² is left out of it [ours]: two diagonal
            scalings, which the sketch takes in, so that `self.sketch` is the one to project with.
    """

    def __init__(
        self, kind: Preconditioner, state: AdamState | None, momentum: bool = True,
        device: torch.device | str = "cpu", sketch: MatrixSketch | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.scratch, self.sketch = kind, Scratch(), sketch
        if kind in ("sgd", "sign"):
            return
        if state is None:
            raise ValueError(f"{kind} needs Adam's moments")
        beta1, beta2 = state.betas
        steps = state.step + 1 if kind == "adam" else math.inf  # "less" has no bias correction
        correction1, correction2 = 1 - beta1**steps, 1 - beta2**steps
        self.eps, self.share1, self.share2 = state.eps, (1 - beta1) / correction1, (1 - beta2) / correction2

        def scaled(moments: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
            return {name: value.to(device, torch.float32) * factor for name, value in moments.items()}

        self.first = scaled(state.exp_avg, beta1 / correction1 if momentum else 0.0)
        self.second = scaled(state.exp_avg_sq, beta2 / correction2)
        if sketch is not None:
            self._take_in(sketch)

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """(B, *shape) float32 gradients of the parameter `name` to directions of that shape; `gradient` is used up."""
        if self.kind == "sgd":
            return gradient
        if self.kind == "sign":
            return gradient.sign_()
        if self.sketch is not None and name in self.sketch:
            return gradient.mul_(self.share1 * self.heights[name]).add_(self.first[name])
        return self._step(gradient, self.first[name], self.second[name])

    def of_neighbours(self, names: Sequence[str], gradient: Tensor) -> Tensor:
        """The same of several parameters' numbers side by side, (B, p); none of them may be in the sketch."""
        if self.kind in ("sgd", "sign"):
            return self(names[0], gradient)
        first, second = (torch.cat([of[name].flatten() for name in names]) for of in (self.first, self.second))
        return self._step(gradient, first, second)

    def _step(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        root = self.scratch.take(gradient.shape, gradient.device)
        torch.addcmul(second, gradient, gradient, value=self.share2, out=root)
        root = root.sqrt_().add_(self.eps) if self.kind == "adam" else root.add_(self.eps).sqrt_()
        return gradient.mul_(self.share1).add_(first).div_(root)

    def _take_in(self, sketch: MatrixSketch) -> None:
        """Put the scaling by the second moment into the sketch, and project the term that all examples share."""
        scales, self.heights = {}, {}
        for name in [name for name in self.second if name in sketch]:
            second = self.second.pop(name)
            root = second.sqrt() + self.eps if self.kind == "adam" else (second + self.eps).sqrt()
            *scales[name], self.heights[name] = rank_one(root)
        self.sketch = sketch.scaled(scales)
        for name, height in self.heights.items():
            self.first[name] = reduced(self.sketch, name, self.first[name][None])[0] * height


def rank_one(root: Tensor) -> tuple[Tensor, Tensor, float]:
    """Rows (R,), columns (C,) and a number whose product is nearest to 1 / root in the logarithm.

    Rows and columns have a geometric mean of 1, so that half precision holds them. Adafactor (arXiv 1804.04235, section
    3) takes arithmetic means of the squares, in which a few large entries decide;
    `python -m benchmarks.factors` compares both with Adam.
    """
    logs = root.log()
    middle = logs.mean()
    return (middle - logs.mean(dim=1)).exp(), (middle - logs.mean(dim=0)).exp(), math.exp(-float(middle))


def precondition(
    gradient: Tensor, kind: Preconditioner, name: str, state: AdamState | None, momentum: bool = True
) -> Tensor:
    """`Preconditioning` of one parameter's (B, *shape) float32 gradients, which are left as they are."""
    return Preconditioning(kind, state, momentum, gradient.device)(name, gradient.clone())
