"""What an optimizer would make of a gradient: the step direction of SGD, sign descent or Adam at a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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


def precondition(
    gradient: Tensor, kind: Preconditioner, name: str, state: AdamState | None, momentum: bool = True
) -> Tensor:
    """Turn plain gradients into update directions (LESS, arXiv 2402.04333, section 3.1).

    Args:
        gradient: (B, *shape) float32 gradients of one parameter.
        kind: "sgd": the gradient. "sign": its sign. "adam": the step that Adam would take,
            m̂' / (√v̂' + ε) with bias correction at step t + 1. "less": m' / √(v' + ε) as LESS' released code has it:
            ε inside the root and no bias correction. LoRA's second moments are about 1e-14, far below ε = 1e-8, so
            "less" is in effect a constant times 0.9 m + 0.1 g: momentum plus plain gradient. It is kept to be faithful.
        name: the parameter, to find its moments.
        state: Adam's moments; needed by "less" and "adam".
        momentum: False drops the term β₁m that all examples share [ours].

    Returns:
        (B, *shape) float32; may share memory with `gradient`.
    """
    if kind == "sgd":
        return gradient
    if kind == "sign":
        return gradient.sign()
    if state is None:
        raise ValueError(f"{kind} needs Adam's moments")
    beta1, beta2 = state.betas
    first = gradient * (1 - beta1)
    if momentum:
        first += state.exp_avg[name] * beta1
    second = (state.exp_avg_sq[name] * beta2).addcmul(gradient, gradient, value=1 - beta2)
    if kind == "less":
        return first.div_(second.add_(state.eps).sqrt_())
    if kind == "adam":
        correction1, correction2 = 1 - beta1 ** (state.step + 1), 1 - beta2 ** (state.step + 1)
        denominator = second.div_(correction2).sqrt_().add_(state.eps)
        return first.div_(correction1).div_(denominator)
    raise ValueError(f"unknown preconditioner {kind!r}")


def moments_to(state: AdamState, device: torch.device) -> AdamState:
    """The same state with float32 moments on a device."""

    def move(moments: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(device, torch.float32) for name, value in moments.items()}

    return AdamState(move(state.exp_avg), move(state.exp_avg_sq), state.step, state.betas, state.eps)
