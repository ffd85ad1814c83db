"""What all methods have in common: settings that are checked, and one call that selects."""

from __future__ import annotations

import difflib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from pursuit.errors import SelectionError, SettingsError
from pursuit.selectors.selection import Selection

if TYPE_CHECKING:
    from pursuit.store.features import Features


class Selector(BaseModel, ABC):
    """A method and its settings; `select` applies it.

    A new method is a subclass in a file of its own, with a docstring, a `name`, its `paper`, a field with a description
    for every setting, and `_select`; and a line in `registry.py`.

    Raises:
        SettingsError: an unknown setting or a wrong value, with what would be accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_features: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    @property
    def follows_target(self) -> bool:
        """Whether rows have to add up to the target's gradient, so that both should be of one kind."""
        return False

    @property
    def uses_target(self) -> bool:
        """Whether it follows a target where there is one, and does without."""
        return False

    @property
    def needs_embeddings(self) -> bool:
        """Whether its features are embeddings and losses of the model as given, from one forward pass: no gradients."""
        return False

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise SettingsError("; ".join(_explain(type(self), problem) for problem in error.errors())) from None

    def check_target_sets(self, names: Sequence[str]) -> None:
        """Raise SelectionError where settings do not fit the target sets of these names; asked before heavy work."""

    def select(self, features: Features, budget: int, *, target: Features | None = None, seed: int = 0) -> Selection:
        """Choose `budget` of the N rows.

        Args:
            features: of the pool. A method with `needs_features = False` uses only `num_rows` and `rows`.
            budget: how many rows, 1 … N; see `pursuit.selectors.budget.parse_budget` for shares.
            target: features of the target set, with the same checkpoints and dimension; for methods that need it.
            seed: of everything random in the method.

        Raises:
            SelectionError: no target or one that does not fit, features all zero or NaN, or a wrong budget.
        """
        if not 1 <= budget <= features.num_rows or int(budget) != budget:
            limits = f"1 … {features.num_rows}"
            raise SelectionError(f"{self.name}: the budget must be a whole number in {limits}, not {budget}.")
        if self.needs_target or (self.uses_target and target is not None):
            _check_target(self.name, features, target)
        try:
            return self._select(features, int(budget), target, seed)
        except ValueError as error:
            raise SelectionError(f"{self.name}: {error}.") from error

    @abstractmethod
    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        """`select` with arguments that were checked."""

    def _selection(
        self, features: Features, indices: np.ndarray, weights: np.ndarray | None = None, **more: Any
    ) -> Selection:
        """A Selection that carries the method's name and settings."""
        weights = np.ones(len(indices)) if weights is None else weights
        return Selection(indices, weights, self.name, features.num_rows, self.model_dump(mode="json"), **more)


def _check_target(name: str, features: Features, target: Features | None) -> None:
    if target is None:
        raise SelectionError(f"{name} needs a target set: examples like those that the model should become good at.")
    for what, pool_has, target_has in (
        ("dimension", features.dimension, target.dimension),
        ("number of checkpoints", features.num_checkpoints, target.num_checkpoints),
    ):
        if pool_has != target_has:
            raise SelectionError(
                f"{name}: the {what} of the target's features is {target_has}, of the pool's {pool_has}. "
                "Extract both with the same checkpoints and projection."
            )


def accepted(field: FieldInfo) -> str:
    """In words, which values a setting takes."""
    kind = field.annotation
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    names: dict[Any, str] = {
        int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "nothing",
        dict[str, float]: "name=number,name=number",
    }  # fmt: skip
    words = []
    for option in options:
        if typing.get_origin(option) is Literal:
            words += [f'"{value}"' for value in typing.get_args(option)]
        elif typing.get_origin(option) is Callable:
            words.append("a function")
        else:
            words.append(names.get(option, str(option)))
    limits = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    rules = [(text, getattr(rule, limit, None)) for rule in field.metadata for limit, text in limits.items()]
    bounds = [f"{text} {bound}" for text, bound in rules if bound is not None]
    return " or ".join(words) + (f", {' and '.join(bounds)}" if bounds else "")


def _explain(method: type[Selector], problem: Any) -> str:
    reason = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else ""
    if not problem["loc"]:  # settings that are wrong together
        return f"{method.name}: {reason}."
    key, fields = str(problem["loc"][0]), method.model_fields
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        takes = "It takes " + ", ".join(fields) if fields else "It takes none"
        return f"{method.name} has no setting {key!r}.{hint} {takes}."
    why = f": {reason}." if reason else "."
    wants = f" It must be {accepted(fields[key])}: {fields[key].description}." if key in fields else ""
    return f"{method.name}: {key}={problem['input']!r} cannot be used{why}{wants}"
