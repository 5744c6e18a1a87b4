"""This package's training as `convrepro train` assembles it, in turns with loops that are written by hand."""

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from carried import data_root, data_words
from lightning.pytorch.callbacks import Callback
from loop import Loop, fastest_kernels

from convrepro.config.compose import compose_config
from convrepro.config.schema import RunConfig
from convrepro.data.sample import fit_to, load_sample
from convrepro.data.sets import SETS, Split
from convrepro.models.build import build_network
from convrepro.training.data import image_data
from convrepro.training.identity import identity_of, protocol_of
from convrepro.training.progress import Progress
from convrepro.training.run import Run, assemble

PACKAGE, LOOP, TUNED = "package", "loop", "tuned loop"
ROUNDS = 5
"""Epochs of each that count, after one that does not."""
WATCHED = range(20, 40)
"""Steps in which waits of the host are counted."""


def overrides(model: str, device: str, sample: bool, *, images: int, batch: int, epochs: int) -> list[str]:
    """Those of a short run of HetConv's recipe."""
    trainer = "gpu" if device == "cuda" else "cpu"
    words = [f"model={model}", *data_words(sample), "recipe=hetconv_cifar", f"trainer={trainer}", "logger=none"]
    words += [f"recipe.batch_size={batch}", f"budget.epochs={epochs}", f"budget.train_examples={images}"]
    return [*words, f"budget.test_examples={min(images, 1000)}"]


def fit(words: Sequence[str], callbacks: Sequence[Callback]) -> None:
    """Train by this package, with these callbacks behind its own, and keep nothing."""
    with TemporaryDirectory() as runs:
        words = [*words, f"runs={runs}"]
        cfg = compose_config(words)
        L.seed_everything(cfg.seed, verbose=False)
        protocol = protocol_of(cfg)
        this = Run(cfg, words, protocol, identity_of(cfg, words, protocol))
        progress = Progress(this.folder, cfg.epochs, lambda line: None)
        module, trainer, _ = assemble(this, build_network(cfg)[0], {}, progress)
        trainer.callbacks += callbacks
        trainer.fit(module, image_data(cfg))


class Turns(Callback):
    """After each epoch of this package each of `others` has a turn, in an order that turns around.

    `speeds` has the images per second of each turn, without validation and saving.
    """

    def __init__(self, others: Mapping[str, Callable[[], object]], images: int, left: Callable[[], float]) -> None:
        self.others, self.images, self.left = others, images, left
        self.speeds: dict[str, list[float]] = {name: [] for name in (PACKAGE, *others)}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(PACKAGE)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = list(self.others)
        for name in names[:: 1 if trainer.current_epoch % 2 else -1]:
            self._begin()
            self.others[name]()
            self._end(name)
        if len(self.speeds[PACKAGE]) > 2 and self.left() < 0:
            trainer.should_stop = True

    def _begin(self) -> None:
        _await_device()
        self._begun = time.perf_counter()

    def _end(self, name: str) -> None:
        _await_device()
        self.speeds[name].append(self.images / (time.perf_counter() - self._begun))


def _await_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def throughput(words: Sequence[str], device: str, left: Callable[[], float]) -> dict[str, Any]:
    """Images per second of this package and of hand-written loops with the same network, images and batch.

    `LOOP` has the settings of torch that the package has, `TUNED` the fastest ones.
    """
    cfg = compose_config(words)
    split = _images(cfg)

    def loop(tuned: bool) -> Callable[[], object]:
        made = Loop(
            build_network(cfg)[0],
            *split,
            batch=cfg.loader_batch,
            device=device,
            mixed=cfg.trainer.precision == "bf16-mixed",
            compiled=cfg.trainer.compile,
            fused=tuned and device == "cuda",
        )

        def epoch() -> None:
            with fastest_kernels() if tuned else nullcontext():
                made.epoch()

        return epoch

    turns = Turns({LOOP: loop(False), TUNED: loop(True)}, len(split.labels), left)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's about few workers, torch's about kernels that are not exact
        fit(words, [turns])
    counted = {name: speeds[1:] for name, speeds in turns.speeds.items()}
    speeds = {name: round(statistics.median(found), 1) for name, found in counted.items()}
    return {
        "images_per_second": speeds,
        "ratio": {name: speeds[PACKAGE] / speeds[name] for name in (LOOP, TUNED)},
        "rounds": {name: [round(speed, 1) for speed in found] for name, found in counted.items()},
        "batch": cfg.loader_batch,
        "precision": cfg.trainer.precision,
        "overrides": list(words),
    }


def _images(cfg: RunConfig) -> Split:
    """As many training images as the run has."""
    if cfg.budget.sample:
        split = fit_to(load_sample("train"), cfg.data.channels, cfg.image_size)
    else:
        split = SETS[cfg.data.name].load(data_root(), "train", cfg.data.verify)
    return split.take(torch.arange(cfg.budget.train_examples or len(split.labels)))


class Watch(Callback):
    """Has torch warn of each wait of the host for the device during the steps `WATCHED`."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == WATCHED.start:
            torch.cuda.set_sync_debug_mode("warn")
        elif trainer.global_step == WATCHED.stop:
            torch.cuda.set_sync_debug_mode("default")


def host_syncs(words: Sequence[str], device: str) -> dict[str, Any]:
    """How often the host waits for the device in some steps of this package, and where."""
    if device != "cuda":
        return {"skipped": "torch can tell of a GPU alone"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(words, [Watch()])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    syncs = [found for found in caught if "synchronizing CUDA operation" in str(found.message)]
    where = Counter(f"{Path(found.filename).name}:{found.lineno}" for found in syncs)
    return {"syncs": len(syncs), "steps": len(WATCHED), "where": dict(where), "overrides": list(words)}
