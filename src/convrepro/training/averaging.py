"""The exponential moving average of a network's weights, which is evaluated in the place of the weights."""

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class AveragedWeights(WeightAveraging):
    """Keeps e = decay * e + (1 - decay) * w after each step of the optimizer, starting at the first step with e = w.

    It averages parameters and the statistics of batch norm; integers, such as the count of batches, are those of the
    newest weights. Validation and the checkpoint's `state_dict` are of the average; the checkpoint has the weights
    themselves beside it, so that a resumed run continues as an unbroken one.
    """

    def __init__(self, decay: float) -> None:
        def average(kept: Tensor, new: Tensor, _: Tensor | int) -> Tensor:
            return kept.lerp(new, 1 - decay) if kept.is_floating_point() else new

        super().__init__(avg_fn=average)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluates the average that is saved on every device; each has its own statistics of batch norm."""
        if self._average_model is not None and trainer.world_size > 1:
            for buffer in self._average_model.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        super().on_validation_epoch_start(trainer, pl_module)
