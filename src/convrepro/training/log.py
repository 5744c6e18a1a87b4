"""The callback that gives a run's logger what there is to log: each epoch and, where asked for, every n-th step."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from convrepro.training.module import classifier


class CatchUp(Protocol):
    def __call__(self, history: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> None: ...


class RunLog(Callback):
    """Calls `catch_up` when the training starts or is resumed, after each validation, and after every `every`-th step.

    `catch_up` gets the module's history and `steps`: `step`, `loss` (of all devices, the cross-entropy alone) and
    `images_per_second` (of all devices, since the step before in `steps` or the start of the epoch) of every
    `every`-th step, counted from 1. They are saved with the checkpoint, so that a resumed run has each of them once.

    All processes of a run need this callback where `every` is given; those that do not log have no `catch_up`. The loss
    is read from the device in those steps alone.
    """

    def __init__(self, catch_up: CatchUp | None, every: int | None = None) -> None:
        self.catch_up = catch_up
        self.every = every
        self.steps: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps} if self.steps else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = list(state_dict["steps"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # Lightning does not call it for an epoch that is resumed midway
        self._log(pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self._images = time.monotonic(), 0
        self._sums: list[torch.Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.every:
            return
        images = len(batch[1])
        self._images += images * trainer.world_size
        if (self._before + 1) % self.every:
            return
        loss = classifier(pl_module).step_loss.float()
        self._sums.append(torch.stack([loss * images, loss.new_tensor(images)]))
        if trainer.global_step > self._before:  # else it is one of several batches of the step
            loss, images = trainer.strategy.reduce(torch.stack(self._sums).sum(0), reduce_op="sum").tolist()
            speed = self._images / (time.monotonic() - self._since)
            row = {"step": trainer.global_step, "loss": loss / images, "images_per_second": round(speed, 1)}
            self.steps.append(row)
            self.on_train_epoch_start(trainer, pl_module)
            self._log(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(pl_module)

    def _log(self, module: L.LightningModule) -> None:
        if self.catch_up:
            self.catch_up(classifier(module).history, self.steps)
