"""What the tests of the HTML page show: all committed tables, and a table that tries to break out of its cells."""

from convrepro.evidence.coverage_record import read_record
from convrepro.evidence.speed_record import merged, records
from convrepro.evidence.store import load_evidence, load_proxies
from convrepro.report.html import Entry, coverage_part, speed_part
from convrepro.report.html.measurements import Part
from convrepro.tables import load_table
from support.drawn import printed_statics

NASTY = """\
title: "</title><script>alert('title')</script> & <b>"
source: {paper: paper, arxiv: "\\"><script>alert(1)</script>", table: 1}
question: does <img src=x onerror=alert(2)> hold?
base: [model=resnet18, data=cifar10]
seeds: [0]
metrics:
  "top1'><script>": {unit: "%", tol: 0.3, why: "<script>why</script>", run_metric: top1}
  macs: {unit: M, decimals: 1, printed: round, count: conv_fc}
rows:
  - id: a
    label: "\\" onmouseover=\\"alert(3)"
    overrides: [conv=standard]
    published:
      macs:
        {value: 100, source: "\\" onclick=\\"alert(4)\\" <p>", note: "</a><script>note</script>", confidence: found}
  - id: b
    label: "{{ 7 * 7 }}</th><script>alert(5)</script>"
    overrides: [conv=hetconv]
    published:
      macs:
        {value: 50.0, source: me, confidence: found, cause: misprint, erratum: "--> </style><script>alert(6)</script>"}
claims:
  - {text: "<script>alert(7)</script>", left: b, right: a, metric: macs, max_delta: 0}
deviations: ["<script>alert(8)</script>"]
notes: "]]> <script>alert(9)</script>"
"""


def entries(names) -> list[Entry]:
    tables = [load_table(name) for name in names]
    return [Entry(t, printed_statics(t), load_evidence(t)[1], load_proxies(t)) for t in tables]


def parts() -> list[Part]:
    """Speed and coverage, as committed."""
    return [speed_part(merged(records())), coverage_part(read_record())]
