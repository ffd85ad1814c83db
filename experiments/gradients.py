"""Which gradients are selected from."""

from __future__ import annotations

from typing import Any

# Adam's direction with its momentum for the pool's rows, plain gradients for the target's
PUBLISHED: dict[str, Any] = {"preconditioner": "adam", "momentum": True, "target_preconditioner": "sgd"}
OTHER_GRADIENTS: dict[str, dict[str, Any]] = {
    "no-momentum": {"momentum": False},
    "sgd": {"preconditioner": "sgd"},
    "less": {"preconditioner": "less"},
    "no-momentum-both": {"momentum": False, "target_preconditioner": "same"},
    "256-numbers": {"momentum": False, "target_preconditioner": "auto", "dimension": 256},
    "signs": {"momentum": False, "target_preconditioner": "auto", "dtype": "bits"},
}
