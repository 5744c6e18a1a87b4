"""W&B: the logger of a run, runs recorded offline, and how they are sent later."""
