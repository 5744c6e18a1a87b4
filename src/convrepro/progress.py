"""What a person watching a run sees: a bar within the epoch on a terminal, a line an epoch everywhere."""

import sys
import time
from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar


class EpochLine(Callback):
    """Prints a line when an epoch ends: loss, top-1, best so far, pace and time left."""

    def __init__(self, epochs: int, echo: Callable[[str], None]) -> None:
        self.epochs = epochs
        self.echo = echo

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first = trainer.current_epoch
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        line = pl_module.history[-1]
        best = max(past["val/top1"] for past in pl_module.history)
        done = trainer.current_epoch + 1 - self.first
        left = (time.monotonic() - self.started) / done * (self.epochs - self.first - done)
        self.echo(
            f"  epoch {line['epoch'] + 1}/{self.epochs}  loss {line['train/loss']:.4f}  top-1 {line['val/top1']:.2f} %"
            f"  best {best:.2f} %  {line['seconds']:.1f} s  left {int(left) // 60}:{int(left) % 60:02d}"
        )


def bar() -> list[Callback]:
    """The bar within an epoch, where someone is looking."""
    return [TQDMProgressBar(refresh_rate=20, leave=False)] if sys.stderr.isatty() else []
