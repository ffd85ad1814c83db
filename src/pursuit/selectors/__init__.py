"""Methods that choose rows of a pool from their features; one file each."""

from __future__ import annotations

from pursuit.selectors.base import Selector
from pursuit.selectors.budget import check_budget, parse_budget
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
from pursuit.selectors.registry import METHODS, PRESETS, describe, method
from pursuit.selectors.selection import Selection
from pursuit.selectors.stratified import Stratified
from pursuit.selectors.tagcos import Tagcos

__all__ = [
    "METHODS",
    "PRESETS",
    "Craig",
    "D2",
    "GradNorm",
    "Gtp",
    "KCenter",
    "Less",
    "Longest",
    "Loss",
    "Omp",
    "Perplexity",
    "Random",
    "Rds",
    "Selection",
    "Selector",
    "Stratified",
    "Tagcos",
    "check_budget",
    "describe",
    "method",
    "parse_budget",
]
