"""W&B workspaces and reports as code."""
