"""Ten thousand runs in one table: how long `submit --dry-run`, `status` and `collect` take, and what of it is files.

The run folders are made up: each has the result that a run would write.

    python tests/bench/scale.py [--rows 100] [--seeds 100]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from convrepro.tables import Table, load_table
from support.results import result

TABLE = """\
title: Ten thousand runs
source: {{paper: many, table: 1}}
question: does it scale?
base: [model=resnet20_cifar, data=cifar10, logger=none, trainer=cpu]
seeds: [{seeds}]
metrics:
  top1: {{unit: "%", tol: 0.5, why: it is a benchmark}}
  macs: {{unit: M, decimals: 3, printed: round, count: conv_fc}}
rows:
{rows}
"""


def write_table(root: Path, rows: int, seeds: int) -> None:
    lines = [
        f"  - {{id: r{n}, label: r{n}, overrides: [conv=low_rank, conv.rank={0.1 + n / 1000:.3f}], published: {{}}}}"
        for n in range(rows)
    ]
    (root / "many").mkdir(parents=True)
    text = TABLE.format(seeds=", ".join(map(str, range(seeds))), rows="\n".join(lines))
    (root / "many" / "runs.yaml").write_text(text)


def typed(folder: Path, *words: str) -> float:
    """Seconds that a command takes."""
    env = {**os.environ, "CONVREPRO_TABLES": str(folder / "tables"), "CONVREPRO_SLURM_SITE": ""}
    started = time.perf_counter()
    command = [sys.executable, "-m", "convrepro.cli", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return seconds


def put_results(folder: Path, table: Table, seeds: int) -> int:
    """Puts a result into the folder of each run; the number of folders."""
    for row in table.rows:
        content = result(table.name, row.id, table.overrides(row), budget="proxy")
        for seed in range(seeds):
            place = folder / "runs" / table.name / row.id / f"proxy-seed{seed}"
            place.mkdir(parents=True)
            content["seed"] = content["config"]["seed"] = seed
            (place / "result.json").write_text(json.dumps(content))
    return len(table.rows) * seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=100)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_table(folder / "tables", asked.rows, asked.seeds)
        every = ["--budget", "proxy", "--seeds", f"0..{asked.seeds - 1}"]
        print(f"submit --dry-run  {typed(folder, 'submit', 'many/runs', *every, '--dry-run'):6.1f} s")
        number = put_results(folder, load_table("many/runs", folder / "tables"), asked.seeds)
        started = time.perf_counter()
        size = sum(len(path.read_bytes()) for path in folder.glob("runs/many/runs/*/*/result.json"))
        print(
            f"reading {number} results of {size / number / 1000:.1f} kB alone  {time.perf_counter() - started:6.1f} s"
        )
        print(f"status            {typed(folder, 'status', 'many/runs', *every):6.1f} s")
        print(f"collect           {typed(folder, 'collect', 'many/runs'):6.1f} s")


if __name__ == "__main__":
    main()
