"""Loggers that write files into the run's folder: CSV, or event files for TensorBoard in `tensorboard`.

A run that is continued writes all of its epochs and steps again, so that the files hold each of them once.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convrepro.errors import ConvReproError
from convrepro.runs.storage import write_whole
from convrepro.runs.summary import numbered

CSV, STEPS, EVENTS = "metrics.csv", "steps.csv", "tensorboard"
#: The values that are logged for a step.
LOGGED_STEP = ("loss", "images_per_second")


class CsvLogger:
    """Writes a line for each epoch into `metrics.csv`, and a line for each logged step into `steps.csv`."""

    def __init__(self, folder: Path) -> None:
        self.path, self.steps = folder / CSV, folder / STEPS
        self.written = -1, 0

    def catch_up(self, history: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes the file of the epochs anew where there are more of them, and adds new steps to theirs."""
        epochs, before = self.written
        if len(history) != epochs:
            write_whole(self.path, _lines(numbered(history), header=True))
        if len(steps) != before:
            with self.steps.open("ab" if before else "wb") as file:  # the first time, after those of an attempt before
                file.write(_lines(steps[before:], header=not before))
        self.written = len(history), len(steps)

    def say(self, lines: str) -> None:
        """There is no log: the terminal has the lines."""

    def finish(self, final: Mapping[str, Any]) -> None:
        """There is nothing to add: `result.json` holds the final values."""

    def fail(self, error: BaseException) -> None:
        """There is nothing to close; `error.txt` holds the reason."""


def _lines(rows: Sequence[Mapping[str, Any]], *, header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


class TensorboardLogger:
    """Writes the values of each epoch, and those of each logged step as `step/*`, at its training step.

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
        self.written = 0, 0

    def catch_up(self, history: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes the epochs and steps that this attempt has not written."""
        epochs, before = self.written
        for row in steps[before:]:
            for key in LOGGED_STEP:
                self.writer.add_scalar(f"step/{key}", row[key], row["step"])
        for line in numbered(history[epochs:]):
            for key, value in line.items():
                if isinstance(value, int | float) and key != "step":
                    self.writer.add_scalar(key, value, line.get("step", line["epoch"]))
        self.written = len(history), len(steps)
        if len(history) != epochs:
            self.writer.flush()

    def say(self, lines: str) -> None:
        """There is no log: the terminal has the lines."""

    def finish(self, final: Mapping[str, Any]) -> None:
        """Writes the final values that are numbers, and closes the file."""
        for key, value in final.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.writer.add_scalar(f"final/{key}", value)
        self.writer.close()

    def fail(self, error: BaseException) -> None:
        """Closes the file."""
        self.writer.close()
