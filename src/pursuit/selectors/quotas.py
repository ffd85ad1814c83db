"""Sharing a budget among several target sets: quotas as a setting, whole shares, and one order of choice."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from pursuit.errors import SelectionError
from pursuit.selectors.stratified import source_codes

if TYPE_CHECKING:
    from pursuit.store.features import Features


def read_quotas(value: Any) -> dict[str, float] | None:
    """Quotas from a mapping, or from text such as "mmlu=2,bbh=1".

    Raises:
        ValueError: not of this form, a name given twice, or a share that is not a number above 0.
    """
    if value is None:
        return None
    if isinstance(value, str):
        pairs = [entry.rpartition("=") for entry in value.split(",")]
        if not all(equals and name.strip() for name, equals, _ in pairs):
            raise ValueError("write it as name=share,name=share")
        names = [name.strip() for name, _, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is given twice")
        value = dict(zip(names, (share.strip() for _, _, share in pairs), strict=True))
    if not isinstance(value, Mapping) or not value:
        raise ValueError("write it as name=share,name=share")
    return {str(name): _share(str(name), share) for name, share in value.items()}


def _share(name: str, value: Any) -> float:
    try:
        share = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        share = float("nan")
    if not 0 < share < float("inf"):
        raise ValueError(f"the share of {name!r} is {value!r}, not a number above 0")
    return share


Quotas = Annotated[dict[str, float] | None, BeforeValidator(read_quotas)]


def target_parts(target: Features) -> tuple[list[str], list[np.ndarray]]:
    """The target sets (sources of the target's rows) in order of first appearance, and the rows of each."""
    names, codes = source_codes(target)
    return names, [np.flatnonzero(codes == number) for number in range(len(names))]


def check_quotas(method: str, quotas: Mapping[str, float] | None, names: Sequence[str]) -> None:
    """Whether quotas fit the target sets of these names.

    Raises:
        SelectionError: there is no target, quotas for a name that is no target set, or none for one that is.
    """
    if quotas is None:
        return
    if not names:
        raise SelectionError(f"{method}: quotas share the budget among target sets, and there is no target.")
    sets = f"The target sets are {', '.join(names)}."
    for unknown in sorted(quotas.keys() - set(names)):
        near = difflib.get_close_matches(unknown, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SelectionError(f"{method}: quotas name {unknown!r}, which is no target set.{hint} {sets}")
    if missing := [name for name in names if name not in quotas]:
        raise SelectionError(f"{method}: quotas give no share to the target set {missing[0]!r}. {sets}")


def quota_shares(method: str, quotas: Mapping[str, float] | None, names: list[str], budget: int) -> np.ndarray:
    """(S,) int64, how many of `budget` rows each of S target sets gets: by largest remainder, on ties the earlier.

    Args:
        quotas: relative shares by name; equal ones without.

    Raises:
        SelectionError: see `check_quotas`.
    """
    check_quotas(method, quotas, names)
    given = dict.fromkeys(names, 1.0) if quotas is None else quotas
    parts = [Fraction(str(given[name])) for name in names]  # exact: rounding cannot move a row
    exact = [part * budget / sum(parts) for part in parts]
    shares = np.array([int(share) for share in exact], dtype=np.int64)
    largest = sorted(range(len(names)), key=lambda number: -(exact[number] % 1))
    shares[largest[: budget - int(shares.sum())]] += 1
    return shares


def interleaved(shares: np.ndarray) -> np.ndarray:
    """The order in which lists of these lengths, laid end to end, are merged so that each beginning keeps the shares.

    Returns:
        (Σ shares,) int64 places in the lists laid end to end.
    """
    places = np.concatenate([(np.arange(share) + 0.5) / share for share in shares if share])
    owners = np.repeat(np.arange(len(shares)), shares)
    return np.lexsort((owners, places))
