"""The evidence: collected runs, counts of networks, measured speed, coverage of operators, and the audit of papers."""
