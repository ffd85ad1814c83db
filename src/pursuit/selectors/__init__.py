"""Methods that choose rows of a pool from their features; one file each."""

from __future__ import annotations

from pursuit.selectors.base import Selector
from pursuit.selectors.budget import check_budget, parse_budget
from pursuit.selectors.less import Less
from pursuit.selectors.random import Random
from pursuit.selectors.registry import METHODS, PRESETS, describe, method
from pursuit.selectors.selection import Selection
from pursuit.selectors.stratified import Stratified
from pursuit.selectors.tagcos import Tagcos

__all__ = [
    "METHODS",
    "PRESETS",
    "Less",
    "Random",
    "Selection",
    "Selector",
    "Stratified",
    "Tagcos",
    "check_budget",
    "describe",
    "method",
    "parse_budget",
]
