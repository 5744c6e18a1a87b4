"""Writes the page reproductions/AUDIT.md: the published static values beside their recounts."""

from collections import Counter
from pathlib import Path

from convrepro.complexity.rules import RULES
from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.audit import GROUPS, CountRow, Finding, audit, counted_metric
from convrepro.tables import CAUSES, Relative, list_tables, load_table
from convrepro.tables.markdown import escaped, markdown_grid

FILE = "AUDIT.md"


def write_audit(count_row: CountRow, root: Path = REPRODUCTIONS) -> Path:
    """Audits all tables under `root` and writes AUDIT.md there; returns its path."""
    findings = audit([load_table(name, root) for name in list_tables(root)], count_row)
    path = root / FILE
    path.write_text(render_audit(findings), encoding="utf-8")
    return path


def render_audit(findings: list[Finding]) -> str:
    """Renders the audit as a markdown page: totals first, then a section for each group."""
    parts = [
        "# What the papers print, and what their networks cost",
        "This page recounts every published value that needs no training (multiply-accumulates, parameters, sizes, "
        "percentages of these) from the networks of this project. It is written by `convrepro report --audit`. The "
        "tables give the sources and the confidence of the published values; `src/convrepro/complexity/rules.py` "
        "defines the rules.",
        "\n".join(_totals(findings)),
    ]
    for group, meaning in GROUPS.items():
        members = [finding for finding in findings if finding.group == group]
        if members:
            parts += [f"## {meaning.split(':')[0]} ({len(members)})", meaning, "\n".join(_lines(members, group))]
    rules = "\n".join(f"- `{name}`: {escaped(rule.description)}" for name, rule in RULES.items())
    return "\n\n".join([*parts, "## Counting rules", rules]) + "\n"


def _totals(findings: list[Finding]) -> list[str]:
    groups = [group for group in GROUPS if any(f.group == group for f in findings)]
    papers = list(dict.fromkeys(finding.table.source.paper for finding in findings))
    numbers = Counter((finding.table.source.paper, finding.group) for finding in findings)
    lines = [[paper, *(str(numbers[paper, g]) for g in groups)] for paper in papers]
    sums = ["all", *(str(sum(numbers[paper, g] for paper in papers)) for g in groups)]
    total = [str(sum(map(int, line[1:]))) for line in (*lines, sums)]
    header = [("", "paper"), *(("", group) for group in groups), ("", "values")]
    return markdown_grid((header, [[*line, number] for line, number in zip((*lines, sums), total, strict=True)]))


def _lines(findings: list[Finding], group: str) -> list[str]:
    explained = group in CAUSES
    header = [("", "table, row"), ("", "value"), ("", "paper"), ("", "ours"), ("", "rule"), ("", "confidence")]
    header += [("", "with other rules"), ("", "why")] if explained else []

    def line(finding: Finding) -> list[str]:
        cells = [
            f"`{finding.table.name}`, {finding.row.label}",
            f"{finding.metric.name} ({finding.metric.unit})" if finding.metric.unit != "1" else finding.metric.name,
            str(finding.published.value),
            finding.ours or "-",
            _rule(finding),
            finding.published.confidence,
        ]
        return cells + [finding.nearest, " ".join(finding.published.erratum.split())] * explained

    return markdown_grid((header, [line(finding) for finding in findings]))


def _rule(finding: Finding) -> str:
    metric, counted = finding.metric, counted_metric(finding.table, finding.metric)
    how = {"floor": "cut", "round": "rounded"}[metric.printed]
    of = f"% of {counted.count} ({metric.from_} figures)" if isinstance(metric, Relative) else counted.count
    return f"{of}, {how}"
