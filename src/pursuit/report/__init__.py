"""The selection report: one HTML file, and its overview for a terminal. Knows nothing of how anything was computed."""

from pursuit.report.data import ClusterView, ExampleView, GradientMap, NearDuplicate, ReportData
from pursuit.report.page import write_report
from pursuit.report.terminal import terminal_summary

__all__ = [
    "ClusterView",
    "ExampleView",
    "GradientMap",
    "NearDuplicate",
    "ReportData",
    "terminal_summary",
    "write_report",
]
