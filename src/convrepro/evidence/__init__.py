"""What is known: collected runs, counts, measured speed, coverage, the audit."""
