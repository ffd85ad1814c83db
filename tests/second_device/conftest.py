"""What these tests need of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend import NAME, Pretended

from pursuit.training import optimizer_state


@pytest.fixture(autouse=True)
def like_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision on a GPU; and the pretended device's tensors pass for plain ones, as a GPU's are."""
    if NAME == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False  # as it is by default
        return

    def kind(value: Any) -> type:
        return torch.Tensor if isinstance(value, Pretended) else type(value)

    monkeypatch.setattr(optimizer_state, "type", kind, raising=False)
