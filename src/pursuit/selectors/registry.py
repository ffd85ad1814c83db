"""All methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pursuit.errors import SettingsError
from pursuit.selectors.base import Selector, accepted
from pursuit.selectors.craig import Craig
from pursuit.selectors.d2 import D2
from pursuit.selectors.gradnorm import GradNorm
from pursuit.selectors.gtp import Gtp
from pursuit.selectors.kcenter import KCenter
from pursuit.selectors.less import Less
from pursuit.selectors.longest import Longest
from pursuit.selectors.loss import Loss
from pursuit.selectors.omp import Omp
from pursuit.selectors.perplexity import Perplexity
from pursuit.selectors.random import Random
from pursuit.selectors.rds import Rds
from pursuit.selectors.stratified import Stratified
from pursuit.selectors.tagcos import AS_PUBLISHED, Tagcos

METHODS: dict[str, type[Selector]] = {
    method.name: method
    for method in (
        Tagcos, Gtp, Less, Rds, Omp, KCenter, Craig, D2, GradNorm, Loss, Perplexity, Longest, Random, Stratified,
    )
}  # fmt: skip
PRESETS: dict[str, tuple[type[Selector], Mapping[str, Any]]] = {"tagcos-published": (Tagcos, AS_PUBLISHED)}


def method(name: str, **settings: Any) -> Selector:
    """The method of that name with these settings; a preset's own settings give way to those given.

    Raises:
        SettingsError: an unknown method or setting, or a wrong value; says what would be accepted.
    """
    if name in PRESETS:
        kind, preset = PRESETS[name]
        return kind(**{**preset, **settings})
    if name not in METHODS:
        known = [*METHODS, *PRESETS]
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingsError(f"there is no method {name!r}.{hint} The methods are {', '.join(known)}.")
    return METHODS[name](**settings)


@dataclass(frozen=True)
class Parameter:
    """A setting of a method, in words."""

    name: str
    default: Any
    accepted: str
    description: str


@dataclass(frozen=True)
class Description:
    """A method or preset, in words."""

    name: str
    summary: str
    paper: str
    needs_target: bool
    parameters: tuple[Parameter, ...]


def describe() -> list[Description]:
    """Every method and preset with its settings, defaults and source."""
    methods = [_description(name, kind, {}) for name, kind in METHODS.items()]
    return methods + [_description(name, kind, preset) for name, (kind, preset) in PRESETS.items()]


def _description(name: str, kind: type[Selector], preset: Mapping[str, Any]) -> Description:
    parameters = tuple(
        Parameter(key, preset.get(key, field.default), accepted(field), field.description or "")
        for key, field in kind.model_fields.items()
    )
    summary = (kind.__doc__ or "").strip().splitlines()[0]
    return Description(name, summary, kind.paper, kind.needs_target, parameters)
