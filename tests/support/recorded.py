"""A small table and the records of its runs, as `train` writes them."""

import json
from fractions import Fraction
from pathlib import Path

from convrepro.config.compose import compose_config
from convrepro.tables import Table

YAML = """\
title: A small table
source: {paper: paper, arxiv: "1234.56789", table: 1}
question: does it hold?
base: [model=resnet18, data=mnist]
seeds: [0, 1]
metrics:
  top1: {unit: "%", tol: 0.3, why: one run}
  macs: {unit: M, decimals: 2, printed: floor, count: conv_fc}
rows:
  - id: plain
    label: Plain
    overrides: [conv=standard]
    published: {top1: {value: 94.00, source: somewhere, confidence: found}}
  - id: warm
    label: Warm
    overrides: [conv=shift]
    weights_from: plain
  - id: other
    label: Other work
    quoted: true
    published: {top1: {value: 92.1, source: recollection, confidence: recalled}}
claims:
  - {text: warm loses nothing, left: warm, right: plain, metric: top1, min_delta: 0}
"""
AGAIN = YAML.replace("table: 1", "table: 2").replace(
    "    overrides: [conv=shift]\n    weights_from: plain\n", "    same_as: paper/small/plain\n"
)
STATICS = {"plain": {"macs": 7_000_000}, "warm": {"macs": Fraction(10**7, 3)}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def record(table: Table, row: str, seed: int, top1: float, *, budget: str = "paper", runs: Path | None = None) -> dict:
    """A result as `train` writes it."""
    given = table.row(row)
    source = f"{table.name}/{given.weights_from}/{budget}-seed{seed}/last.ckpt"
    config = compose_config([*table.overrides(given), f"budget={budget}", "data.root=/somewhere/data"]).model_dump()
    return {
        "schema": 1,
        "status": "done",
        **{"table": table.name, "row": row, "seed": seed, "budget": budget},
        "overrides": list(table.overrides(given)),
        "config": config | {"weights": f"{runs}/{source}" if given.weights_from else None},
        "metrics": {"last": {"top1": top1, "epoch": 1}, "best": {"top1": top1 + 0.1, "epoch": 0}},
        "static": {"macs": 7},
        "counts": {"conv_fc": "7000000"},
        "history": [{"epoch": 0, "val/top1": top1 + 0.1, "train/loss": 1.0}, {"epoch": 1, "val/top1": top1}],
        "environment": {
            "commit": COMMIT,
            "dirty": False,
            "versions": {"torch": "2.14.0"},
            "device": "cpu: some processor",
            "threads": 2,
            "precision": "32-true",
            "host": "a-name",
        },
        "time": {"started": "2026-01-01T00:00:00+00:00", "seconds": 12.5},
    }


def put(runs: Path, result: dict, folder: str | None = None) -> Path:
    path = runs / result["table"] / (folder or f"{result['row']}/{result['budget']}-seed{result['seed']}")
    path.mkdir(parents=True, exist_ok=True)
    (path / "result.json").write_text(json.dumps(result))
    return path
