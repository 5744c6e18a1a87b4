"""A small table of two rows to run and one quoted."""

from pathlib import Path

SMALL = """\
title: A small table
source: {paper: paper, arxiv: "1234.56789", table: 1}
question: does it hold?
base: [model=resnet18, data=cifar10]
seeds: [0, 1]
metrics:
  top1: {unit: "%", tol: 0.3, why: one run}
  macs: {unit: M, decimals: 2, printed: floor, count: conv_fc}
  reduction: {unit: "%", decimals: 1, printed: round, reduction_of: macs, base_row: plain, from: printed}
rows:
  - id: plain
    label: Plain
    overrides: [conv=standard]
    published:
      top1: {value: 94.00, source: somewhere, confidence: found}
      macs: {value: 100.00, source: somewhere, confidence: found}
  - id: thin
    label: Thin
    overrides: [conv=hetconv]
    weights_from: plain
    published: {top1: {value: 93.50, source: recollection, confidence: recalled}}
  - id: other
    label: Other work
    quoted: true
    published: {top1: {value: 92.123, source: recollection, confidence: recalled}}
claims:
  - {text: thin loses little, left: thin, right: plain, metric: top1, min_delta: -0.6}
"""


def write(root: Path, text: str, name: str = "paper/small") -> Path:
    path = root / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root
