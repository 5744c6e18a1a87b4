"""Image sets as batches that are ready to train on: one `ImageData` for every set."""

from convrepro.data.module import ImageData

__all__ = ["ImageData"]
