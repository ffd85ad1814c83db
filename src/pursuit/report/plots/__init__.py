"""The charts of the page, a file for each kind."""

from pursuit.report.plots.base import Figure
from pursuit.report.plots.groups import clusters, sources
from pursuit.report.plots.quantities import distribution
from pursuit.report.plots.residuals import cluster_residuals, curves, support_changes
from pursuit.report.plots.space import gradient_map
from pursuit.report.plots.weights import concentration

__all__ = [
    "Figure", "cluster_residuals", "clusters", "concentration", "curves", "distribution", "gradient_map", "sources",
    "support_changes",
]  # fmt: skip
