"""The LightningModule: classification loss, top-1 and top-5, optimizer and schedule from a recipe."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeGuard

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from convrepro.training.mixing import Mixing
from convrepro.training.optim import build_optimizer, build_schedule, step_schedule

#: Distance between the seeds of two runs. It exceeds the steps of any run, so that no two runs share a random stream.
SEED_STRIDE = 1_000_003


class SettlingOperator(Protocol):
    """An operator that puts its parameters back in range after each step of the optimizer, as DeepShift does."""

    def after_optimizer_step(self) -> None: ...


class DecayingOperator(Protocol):
    """An operator whose weight decay is a part of the loss, instead of acting on its latent parameters."""

    latents: Iterable[Tensor]

    def weight_penalty(self) -> Tensor: ...


def _settles(module: nn.Module) -> TypeGuard[SettlingOperator]:
    return hasattr(module, "after_optimizer_step")


def _decays_by_loss(module: nn.Module) -> TypeGuard[DecayingOperator]:
    return bool(getattr(module, "own_decay", False))


class Classifier(L.LightningModule):
    """Trains `network`, which maps (B, C, H, W) images to (B, num_classes) logits, by cross-entropy.

    The randomness of a step (dropout, stochastic rounding, mixup) is a function of seed and step alone, so that a run
    that is resumed at any step continues exactly as an uninterrupted one.

    `history` holds a dict for each epoch, `step_loss` the cross-entropy of the last batch, on the device. A checkpoint
    contains the history, and the `settings` with which alone it may be resumed: network, operator with its knobs,
    overrides.

    Operators whose `own_decay` is true get the recipe's weight decay as a part of the loss, by their
    `weight_penalty()`; the optimizer does not decay their latents. The loss in the history is the cross-entropy alone.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Mapping[str, Any],
        *,
        num_classes: int,
        epochs: int,
        seed: int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.epochs = epochs
        self.seed = seed
        self.settings = dict(settings or {})
        self.history: list[dict[str, float]] = []
        self.top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes), validate_args=False)
        self._after_step = [m.after_optimizer_step for m in network.modules() if _settles(m)]
        self._decay = recipe["optimizer"]["weight_decay"]
        self._penalised = [m for m in network.modules() if _decays_by_loss(m)] if self._decay else []
        alphas = recipe["mixup"], recipe["cutmix"]
        self._mixing = Mixing(*alphas, num_classes) if any(alphas) else None
        self._sums: dict[str, list[Tensor | float]] = {"train": [0.0, 0], "val": [0.0, 0]}
        self._started = time.monotonic()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, self.recipe, undecayed=[p for m in self._penalised for p in m.latents])
        schedule = build_schedule(optimizer, self.recipe, self.epochs)
        return optimizer if schedule is None else ([optimizer], [{"scheduler": schedule, "interval": "epoch"}])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        step_schedule(scheduler, self.current_epoch)

    def on_train_start(self) -> None:
        self._settle()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._settle()

    def _settle(self) -> None:
        """Lets operators put their parameters back in range."""
        for settle in self._after_step:
            settle()

    def on_train_epoch_start(self) -> None:
        self._started = time.monotonic()
        self._sums["train"] = [0.0, 0]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # torch.manual_seed also seeds devices that are absent, each with a stack trace: a third of a small step's time
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(self.seed * SEED_STRIDE + self.trainer.fit_loop.total_batch_idx)
        self._rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        targets = labels
        if self._mixing:
            images, targets = self._mixing.mix(images, labels, self.seed, self.trainer.fit_loop.total_batch_idx)
        loss = F.cross_entropy(self(images), targets, label_smoothing=self.recipe["label_smoothing"])
        self.step_loss = loss.detach()
        self._add("train", loss, len(labels))
        for operator in self._penalised:
            loss = loss + self._decay * operator.weight_penalty()
        return loss

    def on_validation_epoch_start(self) -> None:
        self._sums["val"] = [0.0, 0]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images).float()
        self._add("val", F.cross_entropy(logits, labels), len(labels))
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        self.validated = {
            "val/loss": self._mean("val"),
            "val/top1": 100 * float(self.top1.compute()),
            "val/top5": 100 * float(self.top5.compute()),
        }
        self.top1.reset()
        self.top5.reset()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._close_epoch()

    def _close_epoch(self) -> None:
        """Appends the epoch to the history."""
        when = {"epoch": self.current_epoch, "step": self.trainer.global_step}
        trained = {"train/loss": self._mean("train"), "lr": self._rate}
        seconds = round(time.monotonic() - self._started, 3)
        self.history.append({**when, **trained, **self.validated, "seconds": seconds})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history
        checkpoint["settings"] = self.settings
        own = torch.tensor([float(value) for value in self._sums["train"]], device=self.device)
        checkpoint["train_sum"] = self.trainer.strategy.all_gather(own).view(-1, 2).tolist()  # a row for each device

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])
        sums = torch.tensor(checkpoint["train_sum"]).view(-1, 2)
        if len(sums) == self.trainer.world_size:
            own = sums[self.trainer.global_rank]
        else:  # the checkpoint is of another number of devices: the first device takes over the sums of all
            own = sums.sum(dim=0) * self.trainer.is_global_zero
        self._sums["train"] = own.tolist()

    def _add(self, split: str, loss: Tensor, examples: int) -> None:
        total = self._sums[split]
        total[0] += loss.detach() * examples
        total[1] += examples

    def _mean(self, split: str) -> float:
        own = torch.tensor([float(value) for value in self._sums[split]], device=self.device)
        loss, examples = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        return loss / max(examples, 1)


def classifier(module: L.LightningModule) -> Classifier:
    """The module of a run, for callbacks; raises TypeError for another module."""
    if not isinstance(module, Classifier):
        raise TypeError(f"{type(module).__name__} has no history; a Classifier has one")
    return module
