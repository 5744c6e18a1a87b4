"""Shows the evidence: pages of the papers, plots, the HTML page, W&B dashboards."""
