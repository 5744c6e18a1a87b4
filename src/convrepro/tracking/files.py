"""Loggers that write files into the run's folder: `metrics.csv`, or event files for TensorBoard in `tensorboard`.

A run that is continued writes all of its epochs again, so that the files hold each epoch once.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convrepro.errors import ConvReproError
from convrepro.runs.storage import write_whole
from convrepro.runs.summary import numbered

CSV, EVENTS = "metrics.csv", "tensorboard"


class CsvLogger:
    """Writes a line for each epoch."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CSV

    def catch_up(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes the file anew, with all epochs so far."""
        columns = list(dict.fromkeys(key for line in history for key in line))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(numbered(history))
        write_whole(self.path, text.getvalue().encode())

    def finish(self, final: Mapping[str, Any]) -> None:
        """There is nothing to add: `result.json` holds the final values."""

    def fail(self, error: BaseException) -> None:
        """There is nothing to close; `error.txt` holds the reason."""


class TensorboardLogger:
    """Writes the values of each epoch at its training step.

    Raises ConvReproError where the package `tensorboard` is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConvReproError(
                "logger=tensorboard is not installed: pip install 'convrepro[tensorboard]', or take logger=csv"
            ) from error
        # purge_step hides what an earlier attempt wrote from the first step on; it is written again
        self.writer: Any = SummaryWriter(str(folder / EVENTS), purge_step=0)
        self.written = 0

    def catch_up(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes the epochs that this attempt has not written."""
        for line in numbered(history[self.written :]):
            for key, value in line.items():
                if isinstance(value, int | float) and key != "step":
                    self.writer.add_scalar(key, value, line.get("step", line["epoch"]))
        self.written = len(history)
        self.writer.flush()

    def finish(self, final: Mapping[str, Any]) -> None:
        """Writes the final values that are numbers, and closes the file."""
        for key, value in final.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.writer.add_scalar(f"final/{key}", value)
        self.writer.close()

    def fail(self, error: BaseException) -> None:
        """Closes the file."""
        self.writer.close()
