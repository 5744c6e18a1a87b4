"""Images in memory, on the device that trains: cropping, flipping and normalising take one batch at a time."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from convrepro.data.loader import AUGMENT, Batch, Normalize, stream
from convrepro.data.sets import Split


class MemorySource:
    """Batches of a split that fits in memory.

    `crop_padding` p: zeros around the image, then a crop of its size at one of the (2p+1)^2 places; `flip`: left to
    right with probability 1/2. Both are drawn for each example and epoch from `seed`.
    """

    def __init__(
        self,
        split: Split,
        normalize: Normalize,
        *,
        flip: bool = False,
        crop_padding: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        n, height, width, channels = split.images.shape
        p = crop_padding
        padded = F.pad(split.images.to(device), (0, 0, p, p, p, p)).contiguous()
        image, row, column, channel = padded.stride()
        # every crop of every image as a view: (N, 2p+1, 2p+1, H, W, C)
        self._crops = padded.as_strided(
            (n, 2 * p + 1, 2 * p + 1, height, width, channels), (image, row, column, row, column, channel)
        )
        self._labels = split.labels.to(device)
        self._normalize = normalize
        self._flip = flip
        self._seed = seed

    def __len__(self) -> int:
        return len(self._labels)

    def draws(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each example its crop's first row and column (N,) int64 and whether it is flipped (N,) bool."""
        generator = stream(self._seed, epoch, AUGMENT)
        rows, columns = torch.randint(self._crops.shape[1], (2, len(self)), generator=generator)
        flips = torch.rand(len(self), generator=generator) < (0.5 if self._flip else 0)
        return rows, columns, flips

    def batches(self, indices: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        rows, columns, flips = (draw.to(self._labels.device) for draw in self.draws(epoch))
        for index in indices:
            i = index.to(self._labels.device)
            images = self._crops[i, rows[i], columns[i]]
            if self._flip:
                images = torch.where(flips[i, None, None, None], images.flip(2), images)
            yield self._normalize(images), self._labels[i]
