"""W&B: who a run is there and what its summary holds. W&B is a view; a failure of it never stops a training."""

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from convrepro.identity import Identity


def offline_without_key(mode: str) -> str:
    """The mode that `auto` stands for: WANDB_MODE where set, online with an API key at hand, else offline."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if wandb.login(prompt=False) else "offline"


def never_raises(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn whatever `method` raises into one warning a run; the training goes on without W&B."""

    @wraps(method)
    def guarded(self: "RunLogger", *args: Any, **kwargs: Any) -> Any:
        if self.broken:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.broken = True
            with suppress(Exception):
                wandb.finish(exit_code=1)
            warnings.warn(f"W&B is left out of this run from here on: {error}", stacklevel=2)
            return None

    return guarded


class RunLogger(WandbLogger):
    """A `WandbLogger` that gives up quietly: result.json is the record."""

    broken = False

    @never_raises
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)

    @never_raises
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)

    @never_raises
    def finalize(self, status: str) -> None:
        super().finalize(status)

    @never_raises
    def save(self) -> None:
        super().save()

    @never_raises
    def start(self, config: Mapping[str, Any]) -> None:
        """Open the run and write its whole configuration."""
        self.experiment.config.update(dict(config), allow_val_change=True)
        self.experiment.define_metric("*", step_metric="trainer/global_step")

    @never_raises
    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Write the final summary and close the run."""
        self.experiment.summary.update(dict(summary))
        self.experiment.finish(exit_code=exit_code)


def build_logger(cfg: Mapping[str, Any], identity: Identity, folder: Path, config: Mapping[str, Any]) -> Logger | None:
    """The run's logger, opened, or None for `logger=none`; where W&B cannot be opened the run goes on without it."""
    if cfg["name"] == "none":
        return None
    try:
        logger = _open(cfg, identity, folder, config)
    except Exception as error:
        warnings.warn(f"W&B is left out of this run: {error}", stacklevel=2)
        return None
    return None if logger.broken else logger


def _open(cfg: Mapping[str, Any], identity: Identity, folder: Path, config: Mapping[str, Any]) -> RunLogger:
    if wandb.run is not None:
        wandb.finish()  # left open by a run that could not close it; it would be taken for this one
    mode = offline_without_key(cfg["mode"])
    folder.mkdir(parents=True, exist_ok=True)
    logger = RunLogger(
        name=identity.name,
        id=identity.run_id,
        project=cfg["project"],
        entity=cfg["entity"],
        group=identity.table,
        job_type=identity.row,
        tags=[config["model"], config["conv"]["name"], config["data"]["name"], identity.budget],
        save_dir=str(folder),
        mode=mode,
        resume="allow",
        settings=wandb.Settings(silent=mode != "online", console="off"),
    )
    logger.start({**config, "conv_name": config["conv"]["name"]})
    return logger


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a dashboard compares: last and best metrics, and the static columns by name."""
    metrics = {f"{when}/{key}": value for when in ("last", "best") for key, value in result["metrics"][when].items()}
    return {**metrics, **{f"static/{key}": value for key, value in result["static"].items()}}
