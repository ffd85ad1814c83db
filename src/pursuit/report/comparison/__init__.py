"""The page that compares methods: scores with their intervals, curves over the budget, cost against score."""

from pursuit.report.comparison.data import CompareData, Interval, MethodScore, MetricScores
from pursuit.report.comparison.page import comparison_page, write_comparison

__all__ = ["CompareData", "Interval", "MethodScore", "MetricScores", "comparison_page", "write_comparison"]
