"""Modules that write down the batches that they are given.

They are defined here and not in a test file: a process that `ddp_spawn` starts imports them by name, and only
`tests` is on its path.
"""

from pathlib import Path

import lightning as L
import torch
from torch import nn


def content(batches) -> list[tuple[list[int], bytes]]:
    return [(labels.tolist(), images.contiguous().numpy().tobytes()) for images, labels in batches]


class Recorder(L.LightningModule):
    """A tiny network that notes each batch it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(28 * 28, 10))
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen += [(self.current_epoch, batch_idx, *content([batch]))]
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, batch_idx):
        self.log("loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ranks(Recorder):
    """Writes what each process was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.evaluated = []

    def validation_step(self, batch, batch_idx):
        self.evaluated += content([batch])

    def on_train_end(self) -> None:
        trained = [batch for _, _, batch in self.seen]
        torch.save({"train": trained, "val": self.evaluated}, self.folder / f"{self.global_rank}.pt")
