"""Plots of a table: accuracy against cost, published against recomputed cost, learning curves."""

from convrepro.report.plots.figures import Figure, costs, figures

__all__ = ["Figure", "costs", "figures"]
