"""The checkpoints that a run continues from: when they are saved, how they are written, which one is taken."""

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
#: Batches between two looks at what costs the device or the network to know: losses, and other devices' signals.
LOOK = 10
#: Requests in the order in which they win where devices got different ones.
REQUESTS = (None, "stop", "requeue")


def resumable(folder: Path, protocol: Protocol, echo: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint in `folder`, or None where there is none at all; nothing in a file is executed.

    A torn one with a whole one before it is told and set aside, so that the next save does not take the whole one's
    place. Raises ConvReproError where all are torn, or where the newest is of a run with other settings.
    """
    torn: dict[Path, Exception] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            saved = read_checkpoint(path)["settings"]
        except (ConvReproError, KeyError, OSError) as error:
            torn[path] = error
            continue
        if other := protocol.difference(_config(saved), saved.get("protocol")):
            raise ConvReproError(f"{path} is of a run of another protocol: {other}; move it away to train anew")
        for damaged, error in torn.items():
            echo(f"{damaged} is no whole checkpoint ({error}); set aside for the one before it, {path.name}")
            with suppress(FileNotFoundError):  # another process of this run has set it aside
                damaged.replace(damaged.with_suffix(".torn"))
        return path
    for path, error in torn.items():
        raise ConvReproError(f"{path} is no checkpoint to continue from ({error}); delete it to start anew")
    return None


def _config(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the run that saved a checkpoint; of older versions it is composed from their overrides."""
    return saved["config"] if "config" in saved else compose_config(saved["overrides"]).model_dump()


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint to disk before it takes the last one's name, and keeps that as the previous one.

    What cannot be written is not raised but kept as `failure`, for the other devices wait to hear of it.
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
    """Saves `last.ckpt` after each epoch, every `every` steps if given, and when the run is asked to stop.

    A run ends here, on all devices after the same step: when it is interrupted, when a checkpoint cannot be written,
    and when a loss or a weight is not finite. Nothing of that kind is saved, so that the newest checkpoint is healthy.
    Steps are counted from 1, epochs from 0. Losses stay on the device between looks, and several devices agree on an
    interruption at a look; a single one obeys at once.

    The last batch of an epoch is left to the epoch's end, after validation. Otherwise the validation would be
    missing from a run that is resumed there.
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
        if trainer.current_epoch + 1 < trainer.max_epochs:
            self._obey(trainer, _request(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interruption.listen_again()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._obey(trainer, _request(trainer))

    def _obey(self, trainer: L.Trainer, request: interruption.Request | None) -> None:
        if request:
            saved = f"{self._saved} is saved, and the same command continues from it"
            message = f"interrupted: {saved if self._saved else 'nothing to save yet; the same command starts anew'}"
            _end(trainer, Interrupted(message, requeue=request == "requeue"))

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_losses(trainer)
        if not torch.stack([p.detach().isfinite().all() for p in pl_module.parameters()]).all():
            self._diverged(trainer, f"the weights are not finite after {_step(trainer)}")
        trainer.save_checkpoint(self.path)
        if failure := trainer.strategy.broadcast(self.files.failure):
            whole = f"{self._saved} is whole, and the same command continues from it"
            _end(trainer, ConvReproError(f"{failure}; {whole if self._saved else 'nothing was saved before'}"))
        self._saved = f"{self.path} of {_step(trainer)}"

    def _check_losses(self, trainer: L.Trainer) -> None:
        """End the run where a loss since the last look is not finite on any device."""
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        self._losses.clear()
        finite = torch.stack(losses).isfinite()
        first = torch.where(finite.all(), len(steps), finite.int().argmin())
        first = int(trainer.strategy.reduce(first, reduce_op="min"))
        if first < len(steps):
            self._diverged(trainer, f"the loss of {_step(trainer, steps[first])} is not finite")

    def _diverged(self, trainer: L.Trainer, what: str) -> None:
        kept = f"{self._saved} is the last healthy checkpoint" if self._saved else "no checkpoint was saved before"
        _end(trainer, ConvReproError(f"training diverged: {what}; {kept}; lower recipe.optimizer.lr"))


def _step(trainer: L.Trainer, step: int | None = None) -> str:
    return f"step {trainer.global_step if step is None else step} (epoch {trainer.current_epoch})"


def _request(trainer: L.Trainer) -> interruption.Request | None:
    """What any device was asked for; several devices have to come here after the same step."""
    if trainer.world_size == 1:
        return interruption.requested()
    asked = torch.tensor(REQUESTS.index(interruption.requested()), device=trainer.strategy.root_device)
    return REQUESTS[int(trainer.strategy.reduce(asked, reduce_op="max"))]


def _end(trainer: L.Trainer, error: ConvReproError) -> NoReturn:
    """Raise `error` in the first process; the others leave in silence, lest an exit code of theirs have it killed."""
    raise error if trainer.is_global_zero else SystemExit(0)
