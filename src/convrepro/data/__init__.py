"""Image sets as batches for training. `ImageData` provides every set."""

from convrepro.data.module import ImageData

__all__ = ["ImageData"]
