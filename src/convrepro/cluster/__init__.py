"""Tables on a SLURM cluster: a frozen manifest, job arrays that survive, and what became of each run."""
