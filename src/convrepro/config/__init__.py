"""The configuration of a run: composed by Hydra from `conf/`, checked, and without secrets."""
