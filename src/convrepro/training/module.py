"""The LightningModule: classification loss, top-1 and top-5, optimizer and schedule from a recipe."""

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from convrepro.training.optim import build_optimizer, build_schedule, step_schedule

#: Spacing between the seeds of two runs: larger than any run's number of steps, so that their random streams differ.
SEED_STRIDE = 1_000_003


class Classifier(L.LightningModule):
    """Trains `network`, (B, C, H, W) images to (B, num_classes) logits, by cross-entropy.

    Randomness in a step (dropout, stochastic rounding) is a function of (seed, step) alone, so that a run resumed at
    any step continues exactly as an unbroken one. `history` holds a dict an epoch and is saved with the checkpoint, as
    are the `settings` (network, operator with its knobs, overrides) that a checkpoint may be used with.

    Operators that say so (`own_decay`) get the recipe's weight decay through the loss, as their `weight_penalty()`, and
    none from the optimizer on their latents. The loss in the history is the cross-entropy alone.
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
        self._after_step = [m.after_optimizer_step for m in network.modules() if hasattr(m, "after_optimizer_step")]
        self._decay = recipe["optimizer"]["weight_decay"]
        self._penalised = [m for m in network.modules() if getattr(m, "own_decay", False)] if self._decay else []
        self._sums = {"train": [0.0, 0], "val": [0.0, 0]}
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
        """Let operators put their parameters back in range, as DeepShift's latents need after each step."""
        for settle in self._after_step:
            settle()

    def on_train_epoch_start(self) -> None:
        self._started = time.monotonic()
        self._sums["train"] = [0.0, 0]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # torch.manual_seed also notes the seed for absent devices, with a stack trace each: a third of a small step
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(self.seed * SEED_STRIDE + self.trainer.fit_loop.total_batch_idx)
        self._rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.recipe["label_smoothing"])
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
        """One line of history."""
        when = {"epoch": self.current_epoch, "step": self.trainer.global_step}
        trained = {"train/loss": self._mean("train"), "lr": self._rate}
        seconds = round(time.monotonic() - self._started, 3)
        self.history.append({**when, **trained, **self.validated, "seconds": seconds})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history
        checkpoint["settings"] = self.settings
        own = torch.tensor([float(value) for value in self._sums["train"]], device=self.device)
        checkpoint["train_sum"] = self.trainer.strategy.all_gather(own).view(-1, 2).tolist()  # a row a device

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])
        sums = torch.tensor(checkpoint["train_sum"]).view(-1, 2)
        if len(sums) == self.trainer.world_size:
            own = sums[self.trainer.global_rank]
        else:  # of another number of devices: the first one takes over all of it
            own = sums.sum(dim=0) * self.trainer.is_global_zero
        self._sums["train"] = own.tolist()

    def _add(self, split: str, loss: Tensor, examples: int) -> None:
        total = self._sums[split]
        total[0] += loss.detach() * examples
        total[1] += examples

    def _mean(self, split: str) -> float:
        loss, examples = self._sums[split]
        both = torch.tensor([float(loss), float(examples)], device=self.device)
        loss, examples = self.trainer.strategy.reduce(both, reduce_op="sum").tolist()
        return loss / max(examples, 1)
