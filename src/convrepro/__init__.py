"""Reproduces the tables of papers on efficient convolutions, on any timm model."""

__version__ = "0.1.0"
