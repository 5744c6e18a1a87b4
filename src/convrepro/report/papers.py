"""Writes the pages of the papers, and the scoreboard of the README."""

from collections.abc import Callable, Collection
from itertools import groupby
from pathlib import Path

from convrepro.config.paths import REPRODUCTIONS, ROOT
from convrepro.errors import ConvReproError
from convrepro.evidence.speed_record import FOLDER, grid, merged, of_table, records
from convrepro.evidence.store import load_evidence, load_proxies
from convrepro.tables import (
    Results,
    Statics,
    Table,
    list_papers,
    list_tables,
    load_table,
    render_proxies,
    render_scoreboard,
    render_table,
)
from convrepro.tables.markdown import markdown_grid

START, END = "<!-- scoreboard -->", "<!-- /scoreboard -->"

GENERATED = "The part above is `notes.md`; `convrepro report` generates the part below from the tables and `results/`."

PLOTS = {
    "accuracy": "accuracy: published hollow, ours filled",
    "bits": "accuracy of equally many operations against bits",
    "time": "accuracy against measured time",
    "costs": "published against recomputed costs",
    "curves": "learning curves",
}
"""The kinds of plots of a table, each with its caption. `convrepro report --plots` draws them."""


def plot_path(table: str, kind: str, root: Path = REPRODUCTIONS) -> Path:
    """The path of the plot of this kind of the table `paper/name`."""
    paper, name = table.split("/")
    return root / paper / "plots" / f"{name}-{kind}.svg"


def _tables(root: Path, papers: Collection[str]) -> list[Table]:
    """The papers' tables, ordered by paper and then by their number in it; tables without a number come last."""
    tables = [load_table(name, root) for name in list_tables(root) if name.split("/")[0] in papers]
    return sorted(tables, key=lambda t: (t.source.paper, isinstance(t.source.table, str), str(t.source.table), t.name))


def paper_tables(paper: str, root: Path = REPRODUCTIONS) -> list[Table]:
    """The paper's tables in the order of its page; raises ConvReproError for an unknown paper."""
    if paper not in list_papers(root):
        raise ConvReproError(f"there is no paper {paper!r}; valid: {', '.join(list_papers(root))}")
    return _tables(root, (paper,))


def report(paper: str, statics: Callable[[Table], Statics], root: Path = REPRODUCTIONS) -> Path:
    """Writes the paper's README.md: its notes.md, then each table with values, verdicts, claims, and existing plots.

    `statics(table)` counts a table. Returns the page's path. Raises ConvReproError for an unknown paper.
    """
    tables = paper_tables(paper, root)
    folder = root / paper
    notes = folder / "notes.md"
    speeds = merged(records(root / FOLDER))
    parts = [notes.read_text(encoding="utf-8").strip() if notes.exists() else f"# {paper}", GENERATED]
    parts.append(render_scoreboard((f"`{table.name}`", [_entry(table, statics, root)]) for table in tables).strip())
    for table in tables:
        parts.append(render_table(table, statics(table), load_evidence(table, root)[1], "markdown").strip())
        parts += [
            f"![{table.name}, {caption}]({plot_path(table.name, kind, root).relative_to(folder).as_posix()})"
            for kind, caption in PLOTS.items()
            if plot_path(table.name, kind, root).exists()
        ]
        if measured := of_table(table.name, speeds):
            parts += [
                "**Speed**, measured as in [SPEED.md](../SPEED.md)",
                "\n".join(markdown_grid(grid(measured, "row"))),
            ]
        if proxies := load_proxies(table, root):
            parts += ["**Proxy runs**, not compared with published values", render_proxies(table, proxies).strip()]
    path = folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def title(paper: str, root: Path = REPRODUCTIONS) -> str:
    """What the first line of the paper's notes calls it; its folder's name where it has none."""
    notes = root / paper / "notes.md"
    first = notes.read_text(encoding="utf-8").partition("\n")[0] if notes.exists() else ""
    return first.removeprefix("# ").strip() or paper


def _entry(table: Table, statics: Callable[[Table], Statics], root: Path) -> tuple[Table, Statics, Results]:
    return table, statics(table), load_evidence(table, root)[1]


def write_scoreboard(
    statics: Callable[[Table], Statics], readme: Path = ROOT / "README.md", root: Path = REPRODUCTIONS
) -> Path:
    """Writes a line for each paper between the scoreboard marks of `readme`; returns its path.

    Raises ConvReproError where the marks are missing.
    """
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ConvReproError(f"{readme} has no lines {START} and {END}; add them where the scoreboard belongs")
    groups = groupby(_tables(root, list_papers(root)), key=lambda table: table.source.paper)
    papers = [
        (paper, title(paper, root), [_entry(table, statics, root) for table in tables]) for paper, tables in groups
    ]
    board = render_scoreboard((name, entries) for _, name, entries in papers)
    for paper, name, _ in papers:  # the grid shows the text of a cell as it is, so that the links are put in afterwards
        name = title(paper, root)
        board = board.replace(f"| {name} |", f"| [{name}](reproductions/{paper}/README.md) |", 1)
    readme.write_text(f"{before}{START}\n{board}{END}{after}", encoding="utf-8")
    return readme
