"""What a person or a program that watches a run sees: a bar, a line an epoch, `progress.json`."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from convrepro.runs.folder import write_progress

#: Seconds from one `progress.json` to the next within an epoch.
INTERVAL = 5


class Progress(Callback):
    """Prints a line when an epoch ends, keeps `progress.json` up to date, and measures how fast the training is.

    `speeds` holds the training images a second of each epoch, all devices together, validation and saving left out.
    It is saved with the checkpoint.
    """

    def __init__(self, folder: Path, epochs: int, echo: Callable[[str], None]) -> None:
        self.folder = folder
        self.epochs = epochs
        self.echo = echo
        self.speeds: list[float] = []

    @property
    def images_per_second(self) -> float | None:
        """The median over epochs; None where none was trained."""
        return round(median(self.speeds), 1) if self.speeds else None

    def state_dict(self) -> dict[str, Any]:
        return {"speeds": self.speeds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.speeds = list(state_dict["speeds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._first = time.monotonic(), _batches(trainer)
        self.on_train_epoch_start(trainer, pl_module)  # not called for an epoch that is resumed inside
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
        if trainer.state.fn == TrainerFn.FITTING:
            self.speeds.append(self._speed())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)
        if not trainer.is_global_zero:
            return
        line = pl_module.history[-1]
        best = max(past["val/top1"] for past in pl_module.history)
        left = int(self._left(trainer) or 0)
        odd = "" if math.isfinite(line["val/loss"]) else f"  validation loss {line['val/loss']}"
        self.echo(
            f"  epoch {line['epoch'] + 1}/{self.epochs}  loss {line['train/loss']:.4f}  top-1 {line['val/top1']:.2f} %"
            f"  best {best:.2f} %  {line['seconds']:.1f} s  left {left // 60}:{left % 60:02d}{odd}"
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
        """Training images a second since the epoch, or this process's part of it, began."""
        seconds = time.monotonic() - self._epoch_started
        return round(self._images / seconds, 1) if self._images else None

    def _left(self, trainer: L.Trainer) -> float | None:
        """Seconds that the remaining batches need at this process's pace so far, validation included."""
        done = _batches(trainer)
        if done == self._first:
            return None
        pace = (time.monotonic() - self._started) / (done - self._first)
        return pace * (self.epochs * trainer.num_training_batches - done)


def _batches(trainer: L.Trainer) -> int:
    """Batches trained since the run's beginning."""
    return trainer.fit_loop.total_batch_idx + 1


class EpochLog(Callback):
    """Hands the module's history to `catch_up` when the training starts or continues, and after each epoch."""

    def __init__(self, catch_up: Callable[[Sequence[Mapping[str, Any]]], None]) -> None:
        self.catch_up = catch_up

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.catch_up(pl_module.history)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.catch_up(pl_module.history)


def bar() -> list[Callback]:
    """The bar within an epoch, where someone is looking."""
    return [TQDMProgressBar(refresh_rate=20, leave=False)] if sys.stderr.isatty() else []
