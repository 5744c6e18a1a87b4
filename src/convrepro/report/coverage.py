"""Writes the page reproductions/COVERAGE.md: what each operator does in a network of each family."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convrepro.evidence.coverage_record import OUTCOMES, RECORD, WORKS, Cell, Outcome, Record, cells, read_record
from convrepro.tables.markdown import Grid, bullet, escaped, markdown_grid

PAGE = "COVERAGE.md"

INTRODUCTION = """# Coverage

This page shows which operator works in which network. Each operator has the knobs and the rule `where` of its file in
`conf/conv`. Each family of timm and of this project's zoo is represented by its smallest network with a dense
convolution larger than 1x1 after the first one, or by its smallest network where none has one.

`convrepro coverage` builds the network, replaces its layers, and runs a forward and a backward pass with two random
images in training mode. Every parameter of a replaced layer must then have a finite gradient, unless the original layer
had none. Last, it counts the network.

`works (n)`: n layers were replaced. `—`: the operator's rule selects no layer in this network. `refused [n]`: the
operator cannot replace a layer; the reason is listed under Reasons. `keep (m)`: m layers are replaced with
`conv.unfit=keep`, which leaves such layers as they are. The numbers of multiply-accumulates are in `coverage.json`.

The results are those of the commits listed under Environments; later changes of the operators are not covered."""


def write_page(path: Path = RECORD) -> Path:
    """Writes the page of the record in `path` beside it; returns the page's path."""
    page = path.with_name(PAGE)
    page.write_text(render_page(read_record(path)), encoding="utf-8")
    return page


def render_page(record: Record) -> str:
    """Renders the record as markdown: totals by operator, a line for each network, the reasons, the environments."""
    networks, reasons = by_network(record)
    parts = [
        INTRODUCTION,
        totals(record),
        *("\n".join(markdown_grid(grid)) for grid in (by_operator(record), networks)),
    ]
    if reasons:
        parts += ["## Reasons", "\n".join(f"{number}. {escaped(text)}" for number, text in enumerate(reasons, start=1))]
    environments = [bullet(_described(facts)) for facts in record["environments"].values()]
    return "\n\n".join([*parts, "## Environments", "\n".join(environments)]) + "\n"


def totals(record: Record) -> str:
    """A sentence: how many networks and cells there are, and how many cells have each outcome."""
    outcomes = Counter(cell["outcome"] for _, cell in cells(record))
    words = ", ".join(f"{outcome} {outcomes[outcome]}" for outcome in OUTCOMES)
    return f"{len(record['networks'])} networks, {outcomes.total()} cells: {words}.{_missing(record)}"


def by_operator(record: Record) -> Grid:
    """A line for each operator: how many of its cells have each outcome."""
    outcomes = Counter[tuple[str, Outcome]]((conv, cell["outcome"]) for conv, cell in cells(record))
    lines = [
        [conv, config["where"], *(str(outcomes[conv, outcome]) for outcome in OUTCOMES)]
        for conv, config in record["operators"].items()
    ]
    return _untitled(["operator", "where", *OUTCOMES]), lines


def by_network(record: Record) -> tuple[Grid, list[str]]:
    """A line for each network, and the reasons in the order of their numbers in the cells."""
    reasons: dict[str, int] = {}
    lines = [_line(name, entry, record["operators"], reasons) for name, entry in record["networks"].items()]
    return (_untitled(["family", "network", "image", *record["operators"]]), lines), list(reasons)


def _untitled(words: Sequence[str]) -> list[tuple[str, str]]:
    return [("", word) for word in words]


def _missing(record: Record) -> str:
    """A sentence about the families that are missing so far; "" where the record is complete."""
    missing = {name for name in record["smallest"].values() if name not in record["networks"]}
    return f" {len(missing)} of timm's {len(record['smallest'])} families are missing so far." if missing else ""


def _line(name: str, entry: Mapping[str, Any], convs: Iterable[str], reasons: dict[str, int]) -> list[str]:
    """The line of a network. A reason that is not yet in `reasons` gets the next number; the layer does not matter."""

    def text(cell: Cell | None) -> str:
        if cell is None:
            return ""
        if cell["outcome"] == WORKS:
            return f"works ({cell.get('replaced', '?')})"
        if "reason" not in cell:
            return "—"
        reason = re.sub(r"^layer '[^']*': ", "", cell["reason"])
        kept = f", keep ({cell['replaced']})" if "replaced" in cell else ""
        return f"{cell['outcome']} [{reasons.setdefault(reason, len(reasons) + 1)}]{kept}"

    size = "x".join(map(str, entry.get("input_size", ())[1:]))
    return [entry["family"], name, size, *(text(entry["cells"].get(conv)) for conv in convs)]


def _described(facts: Mapping[str, Any]) -> str:
    packages = ("python", "torch", "timm", "fvcore")
    versions = ", ".join(f"{package} {facts['versions'].get(package)}" for package in packages)
    changes = " with uncommitted changes" if facts["dirty"] else ""
    return f"{facts['date']}, commit {facts['commit']}{changes}, {versions}, {facts['device']}"
