"""What a stage writes: one record for each case, as it goes, so that a stage that is cut off goes on where it was.

An error of a kernel spoils the process that it is found in. So the cases run in a child, which ends with such an error;
another child runs the case once more with blocking launches, to name the kernel, and one goes on with the next case.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from launches import watched

SPOILED = 86
"""The exit status of a child that a CUDA error has ended."""
GRACE = 30.0
"""Seconds after the deadline that a case may still take."""


def arguments(description: str | None, *, overrides: bool = False) -> argparse.Namespace:
    """device, seconds and out, from the command line; with `overrides` also those of runs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=240.0, help="no case is begun after so many")
    parser.add_argument("--out", type=Path, default=Path("gpu-record"))
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    if overrides:
        parser.add_argument("overrides", nargs="*", help="for every run, such as trainer.compile=true")
    words = parser.parse_args()
    words.begun = time.time()
    return words


class Records:
    """The records of a stage, in `out/<stage>.json`, by the name of the case."""

    def __init__(self, stage: str, words: argparse.Namespace) -> None:
        self.file = words.out / f"{stage}.json"
        self.words = words
        self.again: str | None = None
        words.out.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.cases: dict[str, dict[str, Any]] = self.content.setdefault("cases", {})

    def describe(self) -> None:
        """Say what the file is, and when and where it was made; what an earlier call skipped is no longer skipped."""
        self.content.pop("skipped", None)
        self.content |= {"schema": 1, "what": self.file.stem, "time": time.strftime("%Y-%m-%d", time.gmtime())}
        self.content |= {"commit": commit(), "environment": environment(self.words.device)}

    def skip(self, reason: str) -> None:
        """Put on record that the stage did not run here."""
        self.describe()
        self.content["skipped"] = reason
        self.save()
        print(f"  skipped: {reason}", flush=True)

    def left(self) -> float:
        """Seconds until the deadline."""
        seconds: float = self.words.begun + self.words.seconds - time.time()
        return seconds

    def run(self, name: str, case: Callable[[], dict[str, Any]]) -> None:
        """Run `case` and keep its record, unless it has a good one, or was tried by this call, or time is up."""
        if self.again is not None:
            if name == self.again:
                self._once_more(name, case)
            return
        record = self.cases.get(name, {"error": ""})
        if self.words.only not in name or "error" not in record or record.get("call") == self.words.begun:
            return
        if self.left() < 0:
            self.cases.setdefault(name, {"error": "not reached"})
            return
        self.content["running"] = name
        self.save()
        start = time.monotonic()
        spoiled = False
        try:
            record = case()
        except Exception as error:  # the other cases go on, whatever it is
            record, spoiled = described(error), spoils(error)
        if spoiled:
            self.content["spoiled"] = name
        self.keep(name, record | {"took": round(time.monotonic() - start, 2)})
        if spoiled:
            os._exit(SPOILED)

    def keep(self, name: str, record: dict[str, Any]) -> None:
        self.cases[name] = record | {"call": self.words.begun}
        self.content.pop("running", None)
        self.save()
        word = record["error"].splitlines()[0][:150] if "error" in record else "ok"
        print(f"  {name}: {word} ({record.get('took')} s)", flush=True)

    def save(self) -> None:
        """Write the file anew."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1))
        part.replace(self.file)

    def _once_more(self, name: str, case: Callable[[], dict[str, Any]]) -> None:
        """Run a case that has failed, each launch awaited, and add the last launches to its record."""
        with watched() as launches:
            try:
                case()
                found: dict[str, Any] = {"error": "none this time"}
            except Exception as error:
                found = described(error)
        self.cases[name]["blocking"] = found | {"launches": list(launches)}
        self.save()
        print(f"    again, launches blocking: {found['error'].splitlines()[0][:100]}; last: {list(launches)[-1:]}")


def confined(stage: str, words: argparse.Namespace, work: Callable[[Records], None]) -> Records:
    """The records after `work`, which runs all cases, in children."""
    while True:
        status = _child(stage, words, work, None)
        records = Records(stage, words)
        name = records.content.get("running")
        if status not in (0, SPOILED) and name is not None:
            records.keep(name, {"error": f"its process ended with status {status} (-9: killed, its time was up)"})
        if status == 0 or records.left() < 0 or (status != SPOILED and name is None):
            return records
        if status == SPOILED:
            _child(stage, words, work, records.content["spoiled"])


def _child(stage: str, words: argparse.Namespace, work: Callable[[Records], None], again: str | None) -> int | None:
    """The exit status of a fresh process that runs `work`, or only the case `again`."""
    child = multiprocessing.get_context("spawn").Process(target=_run, args=(stage, words, work, again))
    child.start()
    child.join(max(5.0, words.begun + words.seconds - time.time()) + GRACE)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode


def _run(stage: str, words: argparse.Namespace, work: Callable[[Records], None], again: str | None) -> None:
    if again is not None:
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    records = Records(stage, words)
    records.again = again
    records.describe()
    work(records)
    records.save()


def spoils(error: BaseException) -> bool:
    """Whether no kernel can run in this process after the error."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


def described(error: BaseException) -> dict[str, Any]:
    """The error and where it was raised, files by their names alone."""
    trace = without_folders("".join(traceback.format_exception(error)))
    return {"error": without_folders(f"{type(error).__name__}: {error}")[:2000], "trace": trace[-3000:]}


def without_folders(text: str) -> str:
    """`text` with the last part alone of each absolute path."""
    return re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/(?=[\w.+-])", "", text)


def answer(*command: str) -> str | None:
    """The first line that a command prints; None where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().split("\n")[0] or None


def commit() -> str | None:
    """The commit of the code: what COMMIT says, for a copy without a repository; else what git says."""
    return os.environ.get("COMMIT") or answer("git", "rev-parse", "--short=7", "HEAD")


def environment(device: str) -> dict[str, Any]:
    """Versions, the device, its driver and clocks as far as they can be read."""
    found: dict[str, Any] = {"torch": torch.__version__, "device": device}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if device == "cuda":
        found |= {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
        found["driver"] = answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        for word in ("clock_rate", "temperature", "power_draw"):
            try:
                found[word] = getattr(torch.cuda, word)()
            except Exception as error:
                found[word] = type(error).__name__
    return found


def print_failures(records: Records) -> None:
    """Print the cases that were tried and failed, with the last launches before the error."""
    for name, record in records.cases.items():
        if record.get("error", "not reached") != "not reached":
            print(f"FAILED {name}: {record['error'].splitlines()[0][:200]}")
            print("  " + "\n  ".join(record.get("blocking", {}).get("launches", [])[-2:]))


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows under a head, columns aligned."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)
