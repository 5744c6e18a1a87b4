"""Image sets in memory, on the training device. Cropping, flipping and normalising process one batch at a time."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convrepro.data.loader import AUGMENT, Batch, Normalize, stream
from convrepro.data.sets import Split


class MemorySource:
    """Provides batches of a split that fits in memory.

    With `crop_padding` p, p zeros are added on each side of an image, and a crop of the original size is taken at one
    of the (2p+1)^2 positions. With `flip`, an image is flipped left to right with probability 1/2. Both are drawn from
    `seed` for each example and epoch.
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
        # A view of every crop of every image: (N, 2p+1, 2p+1, H, W, C).
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
        """Returns the first row and column of each example's crop, (N,) int64, and whether it is flipped, (N,) bool."""
        generator = stream(self._seed, epoch, AUGMENT)
        rows, columns = torch.randint(self._crops.shape[1], (2, len(self)), generator=generator)
        flips = torch.rand(len(self), generator=generator) < (0.5 if self._flip else 0)
        return rows, columns, flips

    def batches(self, indices: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        device = self._labels.device
        rows, columns, flips = (draw.to(device) for draw in self.draws(epoch))
        for i in _moved(list(indices), device):
            images = self._crops[i, rows[i], columns[i]]
            if self._flip:
                images = torch.where(flips[i, None, None, None], images.flip(2), images)
            yield self._normalize(images), self._labels[i]


def _moved(indices: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Returns `indices` on `device`, by one copy for all of them: each copy makes the host wait for a GPU."""
    return torch.cat(list(indices)).to(device).split([len(index) for index in indices]) if indices else ()
