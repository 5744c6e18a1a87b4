"""Opens the logger that a run asks for. W&B's client is imported only for `logger=wandb`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from convrepro.errors import ConvReproError
from convrepro.runs.identity import Identity
from convrepro.tables import Table
from convrepro.tracking.files import CsvLogger, TensorboardLogger

FILES: dict[str, Callable[[Path], "Logger"]] = {"csv": CsvLogger, "tensorboard": TensorboardLogger}


class Logger(Protocol):
    """A view of a run while it trains; `result.json` is the record."""

    def catch_up(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Logs the epochs of `history` that are not logged yet."""

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
