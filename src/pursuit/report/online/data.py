"""What the page of a choosing training is told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PREFIX = "batch_selection/"  # of the figures in a trainer's log
STRATUM = re.compile(r"kept_stratum_(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineData:
    """Everything that the page shows.

    Attributes:
        steps: a mapping a logged step, in order: `step`, and of the figures of `pursuit.online.Choice.figures` those
            that are known; `step_seconds`, the whole step's, where it is known.
        selector: its name.
        settings, versions, warnings: as in `ReportData`.
    """

    title: str
    selector: str
    steps: Sequence[Mapping[str, float]]
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def values(self, name: str) -> list[float]:
        """One figure at every step; NaN where it is not known."""
        return [float(step.get(name, math.nan)) for step in self.steps]

    def total(self, name: str) -> float:
        """Sum over the steps that know it."""
        return float(sum(value for value in self.values(name) if math.isfinite(value)))

    @property
    def strata(self) -> list[str]:
        """Names of the figures of the strata, easiest first."""
        found = {match[0]: int(match[1]) for step in self.steps for name in step if (match := STRATUM.match(name))}
        return sorted(found, key=lambda name: found[name])


def logged_steps(history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Steps out of a log: lines of a fine-tuning's log.jsonl, or `trainer.state.log_history`.

    Lines without a choice (evaluations, the summary at the end) are left out.
    """
    steps: list[dict[str, float]] = []
    before = 0.0
    for line in history:
        own = line.get("batch_selection")
        if own is None:
            own = {name.removeprefix(PREFIX): value for name, value in line.items() if name.startswith(PREFIX)}
        if not own or "step" not in line:
            continue
        step = {"step": float(line["step"]), **{name: float(value) for name, value in own.items()}}
        if "seconds" in line:
            step["step_seconds"] = float(line["seconds"]) - before
            before = float(line["seconds"])
        steps.append(step)
    return steps
