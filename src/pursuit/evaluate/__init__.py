"""Scoring a model on held-out rows: loss, exact match, multiple choice, scorers and players of one's own, lm-eval."""

from __future__ import annotations

from pursuit.evaluate.asking import Respond
from pursuit.evaluate.evaluation import evaluate
from pursuit.evaluate.generate import GenerationSettings
from pursuit.evaluate.intervals import Score
from pursuit.evaluate.plan import METRICS, check_metrics
from pursuit.evaluate.result import Evaluation
from pursuit.evaluate.rows import EvalRow, EvalSet, read_eval_set
from pursuit.evaluate.scorers import Player, Scorer, load_function, named_functions

__all__ = [
    "METRICS", "EvalRow", "EvalSet", "Evaluation", "GenerationSettings", "Player", "Respond", "Score", "Scorer",
    "check_metrics", "evaluate", "load_function", "named_functions", "read_eval_set",
]  # fmt: skip
