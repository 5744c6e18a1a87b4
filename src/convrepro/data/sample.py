"""The bundled sample of Fashion-MNIST: 6,000 + 1,000 images for a run that takes seconds and needs no download."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize

from convrepro.data.sets import Split
from convrepro.errors import ConvReproError

SAMPLE = Path(__file__).with_name("fashion_sample.npz")  # written by make_sample.py
NUM_CLASSES = 10
TRAIN_EXAMPLES = 6000


def load_sample(split: str) -> Split:
    """Returns the "train" (6,000) or "test" (1,000) images as (N, 28, 28, 1). Their first n are balanced for every n.

    Raises ConvReproError if the installed file is missing or broken.
    """
    try:
        with np.load(SAMPLE, allow_pickle=False) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConvReproError(f"{SAMPLE} is missing or broken ({error}): install convrepro again") from error
    return Split(torch.from_numpy(images)[..., None], torch.from_numpy(labels).long())


def fit_to(split: Split, channels: int, image_size: int) -> Split:
    """Resizes the grey images of `split` (bilinear, antialiased) to (N, image_size, image_size, channels)."""
    images = split.images.permute(0, 3, 1, 2)
    if images.shape[-2:] != (image_size, image_size):
        images = resize(images, [image_size, image_size], antialias=True)
    return Split(images.permute(0, 2, 3, 1).expand(-1, -1, -1, channels), split.labels)
