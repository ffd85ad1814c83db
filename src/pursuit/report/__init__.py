"""The pages: what was chosen, and how methods compare. Knows nothing of how anything was computed."""

from pursuit.report.data import (
    AgreementData,
    AgreementEntry,
    ClusterView,
    DirectionView,
    ExampleView,
    GradientMap,
    MethodPairs,
    NearDuplicate,
    NeighbourView,
    ReportData,
    Segments,
    TargetView,
)
from pursuit.report.page import write_report
from pursuit.report.terminal import terminal_summary

__all__ = [
    "AgreementData",
    "AgreementEntry",
    "ClusterView",
    "DirectionView",
    "ExampleView",
    "GradientMap",
    "MethodPairs",
    "NearDuplicate",
    "NeighbourView",
    "ReportData",
    "Segments",
    "TargetView",
    "terminal_summary",
    "write_report",
]
