"""Which gradients of the pool are selected from, beside the default (Adam's direction, momentum included)."""

from __future__ import annotations

from typing import Any

OTHER_GRADIENTS: dict[str, dict[str, Any]] = {
    "no-momentum": {"momentum": False},
    "sgd": {"preconditioner": "sgd"},
    "less": {"preconditioner": "less"},
    "no-momentum-both": {"momentum": False, "target_preconditioner": "same"},
}
