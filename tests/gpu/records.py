"""What a stage writes: one record for each case, as it goes, so that a stage that is cut off goes on where it was."""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch


def arguments(description: str) -> argparse.Namespace:
    """device, seconds and out, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=240.0, help="no case is begun after so many")
    parser.add_argument("--out", type=Path, default=Path("gpu-record"))
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    return parser.parse_args()


class Records:
    """The records of a stage, in `out/<stage>.json`, by the name of the case."""

    def __init__(self, stage: str, words: argparse.Namespace) -> None:
        self.file = words.out / f"{stage}.json"
        self.device = words.device
        self.only = words.only
        self.deadline = time.monotonic() + words.seconds
        words.out.mkdir(parents=True, exist_ok=True)
        self.content = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.content["environment"] = environment(words.device)
        self.cases: dict[str, dict[str, Any]] = self.content.setdefault("cases", {})

    def run(self, name: str, case: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The record of `case`, run now unless it has one already; None where time is up. A failure is a record."""
        if self.only not in name:
            return None
        if "error" not in self.cases.get(name, {"error": ""}):
            return self.cases[name]
        if time.monotonic() > self.deadline:
            self.cases.setdefault(name, {"error": "not reached"})
            return None
        start = time.monotonic()
        try:
            record = case()
        except Exception as error:  # the other cases go on, whatever it is
            record = {"error": f"{type(error).__name__}: {error}"[:2000], "trace": traceback.format_exc()[-3000:]}
        self.cases[name] = record | {"took": round(time.monotonic() - start, 2)}
        self.save()
        word = record["error"].splitlines()[0][:150] if "error" in record else "ok"
        print(f"  {name}: {word} ({self.cases[name]['took']} s)", flush=True)
        return self.cases[name]

    def save(self) -> None:
        """Write the file anew."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1))
        part.replace(self.file)


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
        for word in ("clock_rate", "temperature", "power_draw"):
            try:
                found[word] = getattr(torch.cuda, word)()
            except Exception as error:
                found[word] = type(error).__name__
    return found


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows under a head, columns aligned."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)
