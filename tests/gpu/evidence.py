"""Stage 4: rows of HetConv's Table 1 at the paper's recipe, on CIFAR-10 as JPEGs, one after the other while time lasts.

Each row is trained in a process of its own, with its output in `out/<row>.log` and its folder in `out/runs`, where
`convrepro run` with `runs=out/runs` finds it, too. Before the time is up it is asked to save and stop, and the next
call with the same `out` goes on.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

from carried import DATA, SAMPLE, missing_data, missing_packages
from records import Records, arguments, table, without_folders

TABLE = "hetconv/table1"
ROWS = ("p1", "p4", "p64", "p16", "dwc_pwc", "gwc4_pwc")
STOP = 10.0
"""Seconds before the end at which a run is asked to save and stop; with less than twice as many, no row is begun."""
BUDGETS = {"cuda": "paper", "cpu": "smoke"}
WORDS = {
    "cuda": ("trainer=gpu",),
    "cpu": ("trainer=cpu", "recipe.batch_size=8", "budget.train_examples=32", "budget.test_examples=32"),
}


def planned(records: Records, row: str) -> tuple[list[str], Path]:
    """The words of the row's `convrepro train`, as `convrepro run` plans it, and the folder of the run."""
    from convrepro.runs.plan import plan
    from convrepro.tables import load_table

    device = records.words.device
    extra = [f"data={DATA}", "logger=none", *WORDS[device], *records.words.overrides]
    runs = records.file.parent / "runs"
    jobs = plan(load_table(TABLE), budget=BUDGETS[device], rows=[row], seeds=[0], extra=extra, runs=runs)
    return ["train", *jobs[0].overrides], jobs[0].folder


def train(records: Records, row: str) -> None:
    """Run or continue the row, and put on record how far it is."""
    begun = time.monotonic()
    words, folder = planned(records, row)
    log = records.file.parent / f"{row}.log"
    start = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-m", "convrepro.cli", *words]
    with log.open("a") as out, Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            wait(process, records.left() - STOP)
        finally:
            if stopped := process.poll() is None:
                process.terminate()
                if not wait(process, min(STOP, max(1.0, records.left()))):
                    process.kill()
    said = ["not reached"] if stopped else log.read_text()[start:].strip().splitlines()
    record = found(folder, said[-1] if said else "it printed nothing")
    took = {"took": round(time.monotonic() - begun, 1)}
    records.cases[row] = record | took | {"call": records.words.begun}
    records.save()
    word = record.get("error") or f"{record['epoch']} of {record['epochs']} epochs"
    print(f"  {row}: {word} ({took['took']} s)", flush=True)


def wait(process: Popen[bytes], seconds: float) -> bool:
    """Whether the process ends within so many seconds."""
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return False
    return True


def found(folder: Path, said: str) -> dict[str, Any]:
    """What the folder of a run tells; where it tells nothing, what the run `said` last is the error."""
    from convrepro.runs.folder import state
    from convrepro.runs.result import LAST

    run = state(folder)
    if run.result:
        metrics, config = run.result["metrics"], run.result["config"]
        epochs = config["budget"]["epochs"] or config["recipe"]["epochs"]
        top1 = {"last": metrics["last"]["top1"], "best": metrics["best"]["top1"]}
        speed = run.result["time"]["images_per_second"]
        return {"epoch": epochs, "epochs": epochs, "top1": top1, "images_per_second": {"package": speed}}
    if run.error or not run.progress:
        return {"error": without_folders(run.error or said)}
    record = {key: run.progress[key] for key in ("epoch", "epochs")} | {"saved": (folder / LAST).exists()}
    speed = run.progress.get("images_per_second")
    return record | ({"images_per_second": {"package": speed}} if speed else {})


def all_rows(records: Records) -> None:
    """Those that are not finished, in order of value."""
    for row in ROWS:
        if records.words.only not in row or "top1" in records.cases.get(row, {}):
            continue
        if records.left() < 2 * STOP:
            records.cases.setdefault(row, {"error": "not reached"})
        else:
            train(records, row)
    records.save()


def main() -> None:
    words = arguments(__doc__, overrides=True)
    records = Records("evidence", words)
    if reason := missing_packages() or (missing_data() if words.device == "cuda" else None):
        records.skip(reason)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the run is asked to stop on the way
    records.describe()
    records.content |= {"data": SAMPLE if words.device == "cpu" else DATA, "table": TABLE}
    all_rows(records)
    rows = []
    for row, record in records.cases.items():
        speed = record.get("images_per_second", {}).get("package", "")
        rows.append((row, *(record.get(key, "") for key in ("epoch", "epochs")), speed, record.get("top1", "")))
    table(f"{TABLE} on {records.content['data']}", ("row", "epochs", "of", "images/s", "top-1"), rows)


if __name__ == "__main__":
    main()
