"""The page reproductions/COVERAGE.md: what each operator does in a network of each family."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convrepro.evidence.coverage_record import OUTCOMES, RECORD, WORKS, Cell, Record, cells, read_record
from convrepro.tables.markdown import markdown_grid

PAGE = "COVERAGE.md"


INTRODUCTION = """# Coverage

Each operator, with the knobs and the rule `where` of its file in `conf/conv`, in a network of each family of timm and
of this project's zoo: in the smallest that has a dense convolution larger than 1x1 besides its first, if one has.
`convrepro coverage` builds the network, replaces its layers, lets two random images go forward and back in training
mode, demands a finite gradient for each parameter of the replaced layers that had one before, and counts the result.

`works (n)`: n layers were replaced; `—`: the operator's rule selects nothing in this network; `refused [n]`: it is told
in one sentence why not, see Reasons. The numbers of multiply-accumulates are in `coverage.json`.

The cells hold for the commits at which they were walked, see Environments; what operators have become since has not
been walked through these networks."""


def write_page(path: Path = RECORD) -> Path:
    """Write the page of the record in `path` beside it; returns where."""
    page = path.with_name(PAGE)
    page.write_text(render_page(read_record(path)), encoding="utf-8")
    return page


def render_page(record: Record) -> str:
    """The record as markdown: totals by operator, a line for each network, the reasons, the environments."""
    outcomes = Counter((conv, cell["outcome"]) for conv, cell in cells(record))
    totals = [f"{outcome} {sum(outcomes[conv, outcome] for conv in record['operators'])}" for outcome in OUTCOMES]
    by_operator = [
        [conv, config["where"], *(str(outcomes[conv, outcome]) for outcome in OUTCOMES)]
        for conv, config in record["operators"].items()
    ]
    reasons: dict[str, int] = {}
    by_network = [_line(name, entry, record["operators"], reasons) for name, entry in record["networks"].items()]
    parts = [
        INTRODUCTION,
        f"{len(by_network)} networks, {outcomes.total()} cells: {', '.join(totals)}.{_missing(record)}",
        _grid(["operator", "where", *OUTCOMES], by_operator),
        _grid(["family", "network", "image", *record["operators"]], by_network),
    ]
    if reasons:
        parts += ["## Reasons", "\n".join(f"{number}. {reason}" for reason, number in reasons.items())]
    environments = [f"- {_described(told)}" for told in record["environments"].values()]
    return "\n\n".join([*parts, "## Environments", "\n".join(environments)]) + "\n"


def _missing(record: Record) -> str:
    """What the walk has left out so far, as a sentence; "" where it is complete."""
    missing = {name for name in record["smallest"].values() if name not in record["networks"]}
    return f" Not walked yet: {len(missing)} of timm's {len(record['smallest'])} families." if missing else ""


def _grid(header: Sequence[str], lines: list[list[str]]) -> str:
    return "\n".join(markdown_grid(([("", word) for word in header], lines)))


def _line(name: str, entry: Mapping[str, Any], convs: Iterable[str], reasons: dict[str, int]) -> list[str]:
    """A network's line; a reason that is new gets the next number, whichever layer it is about."""

    def word(cell: Cell | None) -> str:
        if cell is None:
            return ""
        if cell["outcome"] == WORKS:
            return f"works ({cell['replaced']})"
        if "reason" not in cell:
            return "—"
        reason = re.sub(r"^layer '[^']*': ", "", cell["reason"])
        return f"{cell['outcome']} [{reasons.setdefault(reason, len(reasons) + 1)}]"

    size = "x".join(map(str, entry.get("input_size", ())[1:]))
    return [entry["family"], name, size, *(word(entry["cells"].get(conv)) for conv in convs)]


def _described(told: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {told['versions'][package]}" for package in ("python", "torch", "timm", "fvcore"))
    changes = " with uncommitted changes" if told["dirty"] else ""
    return f"{told['date']}, commit {told['commit']}{changes}, {versions}, {told['device']}"
