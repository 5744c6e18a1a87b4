"""Batches whose order depends on (seed, epoch) alone, so that a run can stop anywhere and go on with the same data."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from convrepro.errors import ConvReproError

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) float32, labels (B,) int64

ORDER, AUGMENT = 0, 1  # the random streams of an epoch


def stream(seed: int, epoch: int, number: int) -> torch.Generator:
    """A generator of its own for (seed, epoch, number); the global random state is neither read nor moved."""
    state = np.random.SeedSequence((seed, epoch, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Source(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Number of examples."""

    def batches(self, indices: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        """One batch for each tensor of example indices, augmented as (epoch, example) says."""


class Normalize:
    """uint8 images (B, H, W, C) in 0 to 255 -> float32 (B, C, H, W) in 0 to 1, then (x - mean) / std where given.

    The memory format is channels_last where C > 1. Equals torchvision's ToTensor and Normalize, to the bit.
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


class BatchLoader:
    """The training batches of one device: a new order every epoch, the last and smaller batch included.

    Batch b is the same share of the same `world_size * batch_size` examples whatever the number of devices; where
    their number does not divide, the epoch's first examples fill up, so that all devices have equally many.

    Lightning sets the epoch through `sampler`, and saves and restores `state_dict`: a run that is resumed inside an
    epoch continues with the next batch.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._position = (0, 0)  # epoch, number of its batches that were handed out
        self._resuming = False

    def __len__(self) -> int:
        return math.ceil(len(self.source) / (self.world_size * self.batch_size))

    @property
    def sampler(self) -> "BatchLoader":
        """Itself: Lightning calls `loader.sampler.set_epoch(epoch)` before each epoch's first batch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of; read when its first batch is asked for."""
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """The example indices of this device in `epoch`, (ceil(examples / world_size),) int64."""
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
        """The epoch, how many of its batches were handed out, and what decides which they were."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batch at which `state` was taken.

        Raises ConvReproError where the rest of that epoch would be other data: another seed, batch size, number of
        devices or of examples.
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
    """The evaluation batches of one device, in order: every example once over all devices, and equally many batches.

    The batches of a device differ in size by at most one. Raises ConvReproError for fewer examples than devices.
    """

    def __init__(self, source: Source, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if len(source) < world_size:
            raise ConvReproError(f"{len(source)} test examples are too few for {world_size} devices")
        batches = math.ceil(len(source) / (world_size * batch_size))
        share = torch.arange(len(source)).tensor_split(world_size)[rank]
        self.source = source
        self._indices = share.tensor_split(min(batches, len(source) // world_size))

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        return self.source.batches(self._indices, epoch=0)
