"""Opens the logger that a run asks for. W&B's client is imported only for `logger=wandb`."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from convrepro.errors import ConvReproError
from convrepro.runs.identity import Identity
from convrepro.tables import Table
from convrepro.tracking.files import CsvLogger, TensorboardLogger

#: W&B's agents set it for what they start, together with the id that the sweep gave the run.
SWEEP = "WANDB_SWEEP_ID"
FILES: dict[str, Callable[[Path], "Logger"]] = {"csv": CsvLogger, "tensorboard": TensorboardLogger}


class Logger(Protocol):
    """A view of a run while it trains; `result.json` is the record."""

    def catch_up(self, history: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]] = ()) -> None:
        """Logs the epochs of `history` and the steps that are not logged yet.

        Of an epoch `history` has what `Classifier` measures, of a step `steps` has `step` and what `LOGGED_STEP` names.
        """

    def say(self, lines: str) -> None:
        """Adds to the run's log what is said of it in the terminal."""

    def finish(self, final: Mapping[str, Any]) -> None:
        """Logs the final values of the run, and closes the logger."""

    def fail(self, error: BaseException) -> None:
        """Closes the logger of a run that failed, or is continued later."""


def open_logger(
    cfg: Mapping[str, Any],
    identity: Identity,
    folder: Path,
    config: Mapping[str, Any],
    static: Mapping[str, int],
    table: Table | None,
) -> Logger | None:
    """Opens the logger that the `logger` group's choice `cfg` names; returns None for `logger=none`.

    config: the whole resolved configuration; static: the run's static columns; table: that of the run, if any. Where
    W&B cannot be opened, a warning says so. Raises ConvReproError where a package is missing.
    """
    name = cfg["name"]
    if name == "none":
        return None
    if name in FILES:
        return FILES[name](folder)
    try:
        from convrepro.tracking.logger import build_logger
    except ModuleNotFoundError as missing:
        raise ConvReproError(
            f"logger={name} needs {missing.name}; `pip install wandb`, or take logger=csv"
        ) from missing
    return build_logger(cfg, identity, folder, config, static, table)


def log_finished(
    cfg: Mapping[str, Any], identity: Identity, folder: Path, result: Mapping[str, Any], table: Table | None
) -> None:
    """Tells the W&B sweep whose agent asks for a finished run what came of it; does nothing without such an agent.

    The sweep waits for the run that it had the agent start, though the same was trained before. Where W&B cannot be
    used, a warning says so.
    """
    if cfg["name"] == "wandb" and os.environ.get(SWEEP):
        from convrepro.tracking.logger import log_again

        log_again(cfg, identity, folder, result, table)
