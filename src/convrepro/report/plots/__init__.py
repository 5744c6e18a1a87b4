"""Plots of a table: accuracy against cost, published against recomputed cost, learning curves."""

from convrepro.report.plots.figures import costs, figures
from convrepro.report.plots.kinds import Figure

__all__ = ["Figure", "costs", "figures"]
