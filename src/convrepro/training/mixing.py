"""Mixup and CutMix of training batches, drawn anew for each step from seed and step alone."""

import numpy as np
import timm.data
from timm.data.mixup import mixup_target
from torch import Tensor


class Mixing(timm.data.Mixup):
    """Mixes each batch with itself in reverse order: by mixup, by CutMix, or evenly by one of both.

    `mixup` and `cutmix` are the alphas of the Beta distribution of the share that an image keeps (arXiv 1710.09412,
    1905.04899); 0 turns one off, and one of both must be above 0. Targets are not smoothed here: smoothing a mixture of
    targets is the same as mixing smoothed ones, and the loss does it.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        super().__init__(mixup, cutmix, label_smoothing=0.0, num_classes=num_classes)

    def mix(self, images: Tensor, labels: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Returns mixed images (B, C, H, W), in the memory of the given ones, and targets (B, num_classes) float32.

        In a batch of an odd size, which timm's own call rejects, the image in the middle is mixed with itself. NumPy's
        global state, from which timm draws, is as before.
        """
        state = np.random.get_state()
        np.random.seed([seed, step])
        try:
            kept = self._mix_batch(images)
        finally:
            np.random.set_state(state)
        return images, mixup_target(labels, self.num_classes, kept)
