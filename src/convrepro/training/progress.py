"""Callbacks that show the progress of a run: a progress bar, a line for each epoch, and `progress.json`."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from convrepro.runs.folder import write_progress
from convrepro.training.module import classifier

#: Seconds between two updates of `progress.json` within an epoch.
INTERVAL = 5
#: Receives each epoch of a run's history.
Watch = Callable[[Mapping[str, float]], None]


class Progress(Callback):
    """Prints a line after each epoch, keeps `progress.json` up to date, and measures the speed of the training.

    `speeds` holds the training images per second of each epoch, over all devices, without validation and saving. It is
    saved with the checkpoint.
    """

    def __init__(self, folder: Path, epochs: int, echo: Callable[[str], None]) -> None:
        self.folder = folder
        self.epochs = epochs
        self.echo = echo
        self.speeds: list[float] = []

    @property
    def images_per_second(self) -> float | None:
        """The median over the epochs; None before the first epoch has ended."""
        return round(median(self.speeds), 1) if self.speeds else None

    def state_dict(self) -> dict[str, Any]:
        return {"speeds": self.speeds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.speeds = list(state_dict["speeds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._first = time.monotonic(), _batches(trainer)
        self.on_train_epoch_start(trainer, pl_module)  # Lightning does not call it for an epoch that is resumed midway
        self._write(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_started, self._images = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch[1]) * trainer.world_size
        if time.monotonic() - self._written > INTERVAL:
            self._write(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and (speed := self._speed()) is not None:
            self.speeds.append(speed)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)
        if not trainer.is_global_zero:
            return
        history = classifier(pl_module).history
        last, best = history[-1], max(epoch["val/top1"] for epoch in history)
        left = int(self._left(trainer) or 0)
        odd = "" if math.isfinite(last["val/loss"]) else f"  validation loss {last['val/loss']}"
        self.echo(
            f"  epoch {last['epoch'] + 1}/{self.epochs}  loss {last['train/loss']:.4f}  top-1 {last['val/top1']:.2f} %"
            f"  best {best:.2f} %  {last['seconds']:.1f} s  left {left // 60}:{left % 60:02d}{odd}"
        )

    def _write(self, trainer: L.Trainer) -> None:
        self._written = time.monotonic()
        if trainer.is_global_zero:
            left = self._left(trainer)
            write_progress(
                self.folder,
                epoch=trainer.current_epoch,
                epochs=self.epochs,
                step=trainer.global_step,
                images_per_second=self.images_per_second or self._speed(),
                left_seconds=None if left is None else round(left),
            )

    def _speed(self) -> float | None:
        """Training images per second in this epoch, since its start or since the run was resumed in it."""
        seconds = time.monotonic() - self._epoch_started
        return round(self._images / seconds, 1) if self._images else None

    def _left(self, trainer: L.Trainer) -> float | None:
        """Seconds that the remaining batches take, with validation, at the pace of this process so far."""
        done = _batches(trainer)
        if done == self._first:
            return None
        pace = (time.monotonic() - self._started) / (done - self._first)
        return pace * (self.epochs * trainer.num_training_batches - done)


class Watched(Callback):
    """Hands each epoch of the history to `watch`, which may end the run by raising Stopped; nothing is saved then."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch(classifier(pl_module).history[-1])


def _batches(trainer: L.Trainer) -> int:
    """The number of batches that were trained since the beginning of the run."""
    return trainer.fit_loop.total_batch_idx + 1


def bar() -> list[Callback]:
    """The progress bar within an epoch, where standard error is a terminal."""
    return [TQDMProgressBar(refresh_rate=20, leave=False)] if sys.stderr.isatty() else []
