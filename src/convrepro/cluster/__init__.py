"""Runs of tables on a SLURM cluster: the manifest of a submission, its job arrays, and the state of each run."""
