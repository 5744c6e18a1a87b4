"""Batches whose order depends only on (seed, epoch), so that a run can stop anywhere and resume with the same data."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from convrepro.errors import ConvReproError

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) float32, labels (B,) int64

ORDER, AUGMENT = 0, 1  # The numbers of the random streams of an epoch.


def stream(seed: int, epoch: int, number: int) -> torch.Generator:
    """Returns a separate generator for (seed, epoch, number). The global random state is neither read nor changed."""
    state = np.random.SeedSequence((seed, epoch, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Source(Protocol):
    """A source of batches."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def batches(self, indices: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        """Yields one batch for each tensor of example indices. The augmentation depends only on (epoch, example)."""


class Normalize:
    """Converts uint8 images (B, H, W, C) to float32 (B, C, H, W) in 0 to 1, then to (x - mean) / std if they are given.

    The memory format is channels_last if C > 1. The result equals that of torchvision's ToTensor and Normalize bit for
    bit.
    """

    def __init__(self, mean: Sequence[float] = (), std: Sequence[float] = (), device: torch.device | str = "cpu"):
        self.mean, self.std = (torch.tensor(values, device=device) for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        n, height, width, channels = images.shape
        x = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if len(self.mean):
            mean, std = (v.repeat(height * width) for v in (self.mean, self.std))
            x.view(n, -1).sub_(mean).div_(std)
        return x.permute(0, 3, 1, 2) if channels > 1 else x.view(n, 1, height, width)


def smallest_batch(examples: int, batch_size: int, world_size: int = 1) -> int:
    """Returns the size of the smallest batch of an epoch of `BatchLoader`, which is the last one of each device."""
    share = math.ceil(examples / world_size)
    return share % batch_size or batch_size


class BatchLoader:
    """The training batches of one device, in a new order every epoch, including the last, smaller batch.

    Batch b of all devices together consists of the same `world_size * batch_size` examples for any number of devices.
    If the number of devices does not divide the number of examples, the first examples of the epoch are repeated, so
    that all devices have equally many.

    Lightning sets the epoch through `sampler`, and saves and restores `state_dict`, so that a run that is resumed
    inside an epoch continues with the next batch.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._position = (0, 0)  # The epoch, and the number of its batches that were yielded.
        self._resuming = False

    def __len__(self) -> int:
        return math.ceil(len(self.source) / (self.world_size * self.batch_size))

    @property
    def sampler(self) -> "BatchLoader":
        """The loader itself. Lightning calls `loader.sampler.set_epoch(epoch)` before the first batch of each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, which reads it at its first batch."""
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """Returns the indices of the examples of this device in `epoch`, (ceil(examples / world_size),) int64."""
        order = torch.randperm(len(self.source), generator=stream(self.seed, epoch, ORDER))
        share = math.ceil(len(order) / self.world_size)
        return order[torch.arange(self.rank, share * self.world_size, self.world_size) % len(order)]

    def __iter__(self) -> Iterator[Batch]:
        resumed_here = self._resuming and self._position[0] == self.epoch
        start = self._position[1] if resumed_here else 0
        self._resuming = False
        self._position = (self.epoch, start)
        indices = self.order(self.epoch).split(self.batch_size)[start:]
        for number, batch in enumerate(self.source.batches(indices, self.epoch), start + 1):
            self._position = (self.epoch, number)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch, the number of its batches that were yielded, and the values that determine the order."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which `state` was saved.

        Raises ConvReproError if the remaining data of that epoch would be different, because the seed, the batch size,
        the number of devices or the number of examples is different.
        """
        saved = {key: state[key] for key in self._identity()}
        inside = 0 < state["batch"] < math.ceil(saved["examples"] / saved["global_batch"])
        if inside and saved != self._identity():
            raise ConvReproError(
                f"the checkpoint stopped inside an epoch with {saved}, but this run has {self._identity()}: resume "
                "with the same values"
            )
        self.epoch = state["epoch"]
        self._position = (state["epoch"], state["batch"])
        self._resuming = True

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "examples": len(self.source), "global_batch": self.world_size * self.batch_size}


class EvalLoader:
    """The evaluation batches of one device, in order.

    All devices together have every example once, and every device has the same number of batches. The batches of a
    device differ in size by at most one. Raises ConvReproError if there are fewer examples than devices.
    """

    def __init__(self, source: Source, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if len(source) < world_size:
            raise ConvReproError(
                f"{len(source)} test examples are too few for {world_size} devices; valid: up to {len(source)} devices"
            )
        batches = math.ceil(len(source) / (world_size * batch_size))
        share = torch.arange(len(source)).tensor_split(world_size)[rank]
        self.source = source
        self._indices = share.tensor_split(min(batches, len(source) // world_size))

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        return self.source.batches(self._indices, epoch=0)
