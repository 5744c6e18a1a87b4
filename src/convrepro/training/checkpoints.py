"""The checkpoints that a run is resumed from: when they are saved, how they are written, and which one is chosen."""

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError, Interrupted
from convrepro.models.weights import read_checkpoint
from convrepro.runs import interruption
from convrepro.runs.protocol import Protocol
from convrepro.runs.result import LAST
from convrepro.runs.storage import write_whole

PREVIOUS = "previous.ckpt"
#: Steps between two checks of what is slow to find out: the losses on the device, and the requests to other devices.
LOOK = 10
#: Requests by rank: where devices received different requests, the last of them in this order is obeyed.
REQUESTS: tuple[interruption.Request | None, ...] = (None, "stop", "requeue")


def resumable(folder: Path, protocol: Protocol, echo: Callable[[str], None]) -> Path | None:
    """Returns the newest complete checkpoint in `folder`, or None where the folder has no checkpoint.

    Reading a checkpoint executes nothing in it. Where the newest checkpoint is damaged and the previous one is
    complete, `resumable` reports the damaged one and renames it, so that the next save does not overwrite the complete
    one with it. Raises ConvReproError where all checkpoints are damaged, or where the newest complete one is of a run
    of another protocol.
    """
    damaged: dict[Path, Exception] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            saved = _settings_in(path)
        except (ConvReproError, OSError) as error:
            damaged[path] = error
            continue
        if difference := protocol.difference(_config(saved), saved.get("protocol")):
            raise ConvReproError(f"{path} is of a run of another protocol: {difference}; move it away to train anew")
        for other, reason in damaged.items():
            echo(f"{other} is damaged ({reason}); the run continues from the checkpoint before it, {path.name}")
            with suppress(FileNotFoundError):  # another process of this run has renamed it
                other.replace(other.with_suffix(".torn"))
        return path
    for path, reason in damaged.items():
        raise ConvReproError(f"{path} cannot be resumed from ({reason}); delete it to start the run from the beginning")
    return None


def _config(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the run that saved a checkpoint; of older versions it is composed from their overrides."""
    return saved["config"] if "config" in saved else compose_config(saved["overrides"]).model_dump()


def _settings_in(path: Path) -> Mapping[str, Any]:
    settings = read_checkpoint(path).get("settings")
    if not isinstance(settings, Mapping):
        raise ConvReproError("it holds no settings of a run")
    return settings


class WholeFiles(TorchCheckpointIO):
    """Writes each checkpoint completely before it replaces the last one, which is kept as the previous one.

    Where a checkpoint cannot be written, the reason is kept as `failure` and not raised, because the other devices wait
    until they receive it.
    """

    def __init__(self) -> None:
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        path = Path(path)
        try:
            write_whole(path, content.getbuffer(), keep=path.with_name(PREVIOUS))
        except ConvReproError as error:
            self.failure = str(error)


class Checkpoints(Checkpoint):
    """Saves `last.ckpt` after each epoch, every `every` steps where given, and when the run is asked to stop.

    This callback ends the run when it is interrupted, when a checkpoint cannot be written, and when a loss or a weight
    is not finite. All devices end after the same step. Weights that are not finite are never saved, so that the newest
    checkpoint is healthy. In messages, steps and epochs are counted from 1.

    Losses are checked every `LOOK` steps and remain on the device until then. A single device obeys an interruption at
    once; several devices agree on it every `LOOK` steps. After the last batch of an epoch nothing is saved until the
    validation is done; otherwise a run that is resumed there would lack that validation.
    """

    def __init__(self, folder: Path, every: int | None, files: WholeFiles) -> None:
        self.path = folder / LAST
        self.every = every
        self.files = files
        self._saved: str | None = None
        self._losses: list[tuple[int, Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interruption.listen_again()
        if trainer.ckpt_path:
            self._saved = f"{trainer.ckpt_path} of {_step(trainer)}"
        self._obey(trainer, _request(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._losses.append((trainer.global_step + (not stepped), outputs["loss"]))
        if trainer.is_last_batch:
            self._check_losses(trainer)
        elif stepped:
            look = trainer.global_step % LOOK == 0
            request = _request(trainer) if look or trainer.world_size == 1 else None
            if request or (self.every and trainer.global_step % self.every == 0):
                self._save(trainer, pl_module)
            elif look:
                self._check_losses(trainer)
            self._obey(trainer, request)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, pl_module)
        if trainer.max_epochs is None or trainer.current_epoch + 1 < trainer.max_epochs:
            self._obey(trainer, _request(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interruption.listen_again()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._obey(trainer, _request(trainer))

    def _obey(self, trainer: L.Trainer, request: interruption.Request | None) -> None:
        if request:
            saved = f"{self._saved} is saved, and the same command continues from it"
            unsaved = "there was nothing to save yet, and the same command starts from the beginning"
            message = f"interrupted: {saved if self._saved else unsaved}"
            _end(trainer, Interrupted(message, requeue=request == "requeue"))

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_losses(trainer)
        if not torch.stack([p.detach().isfinite().all() for p in pl_module.parameters()]).all():
            self._diverged(trainer, f"the weights are not finite after {_step(trainer)}")
        trainer.save_checkpoint(self.path)
        if failure := trainer.strategy.broadcast(self.files.failure):
            saved = f"{self._saved} is complete, and the same command continues from it"
            _end(trainer, ConvReproError(f"{failure}; {saved if self._saved else 'no checkpoint was saved before'}"))
        self._saved = f"{self.path} of {_step(trainer)}"

    def _check_losses(self, trainer: L.Trainer) -> None:
        """Ends the run where a loss since the last check is not finite on any device."""
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        self._losses.clear()
        finite = torch.stack(losses).isfinite()
        own_first = torch.where(finite.all(), len(steps), finite.int().argmin())
        first = int(trainer.strategy.reduce(own_first, reduce_op="min"))
        if first < len(steps):
            self._diverged(trainer, f"the loss of {_step(trainer, steps[first])} is not finite")

    def _diverged(self, trainer: L.Trainer, what: str) -> None:
        kept = f"{self._saved} is the last healthy checkpoint" if self._saved else "no checkpoint was saved before"
        _end(trainer, ConvReproError(f"training diverged: {what}; {kept}; lower recipe.optimizer.lr"))


def _step(trainer: L.Trainer, step: int | None = None) -> str:
    return f"step {trainer.global_step if step is None else step} (epoch {trainer.current_epoch + 1})"


def _request(trainer: L.Trainer) -> interruption.Request | None:
    """The request that any of the devices received. All devices must call this after the same step."""
    if trainer.world_size == 1:
        return interruption.requested()
    asked = torch.tensor(REQUESTS.index(interruption.requested()), device=trainer.strategy.root_device)
    return REQUESTS[int(trainer.strategy.reduce(asked, reduce_op="max"))]


def _end(trainer: L.Trainer, error: ConvReproError) -> NoReturn:
    """Raises `error` in the first process, and exits with 0 in the others.

    With another exit code of theirs, the launcher would kill the first process before it has reported the error.
    """
    raise error if trainer.is_global_zero else SystemExit(0)
