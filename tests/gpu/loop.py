"""A training loop as one writes it by hand: no Lightning, nothing of this package but the network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Loop:
    """SGD with momentum on images that stay on the device, with random crops and flips; a step reads nothing back.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) int64.
        mixed: whether steps are under bfloat16 autocast.
        fused: whether the optimizer is one kernel.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        batch: int,
        device: str,
        mixed: bool,
        compiled: bool,
        fused: bool,
        padding: int = 4,
    ) -> None:
        self.device, self.batch, self.mixed = device, batch, mixed
        network = network.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=fused)
        self.network: Callable[[Tensor], Tensor] = network
        if compiled:  # for one size of batch: of several networks in one process the later ones would get all sizes
            self.network = torch.compile(network, dynamic=False)
        n, height, width, channels = images.shape
        self.places = 2 * padding + 1
        padded = F.pad(images.to(device), (0, 0, *[padding] * 4)).contiguous()
        image, row, column, channel = padded.stride()
        shape = n, self.places, self.places, height, width, channels
        self.crops = padded.as_strided(shape, (image, row, column, row, column, channel))
        self.labels = labels.to(device)

    def epoch(self) -> float:
        """Train on each image once; returns the mean loss."""
        n = len(self.labels)
        order = torch.randperm(n, device=self.device)
        rows, columns = torch.randint(self.places, (2, n), device=self.device)
        flips = torch.rand(n, device=self.device) < 0.5
        total = torch.zeros((), device=self.device)
        for i in order.split(self.batch):
            images = self.crops[i, rows[i], columns[i]]
            images = torch.where(flips[i, None, None, None], images.flip(2), images)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
                loss = F.cross_entropy(self.network(images.permute(0, 3, 1, 2).float() / 255), self.labels[i])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(i)
        return total.item() / n


@contextmanager
def fastest_kernels() -> Iterator[None]:
    """Within the block cuDNN chooses by timing, and kernels need not be deterministic."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    tuned = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        torch.backends.cudnn.benchmark = tuned
