"""Arguments that several commands share: those that select tables, rows, seeds and the folder of the runs."""

import argparse
import os
import re
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from convrepro.config.overrides import shown
from convrepro.errors import ConvReproError

#: Seeds in a range at most.
MOST_SEEDS = 1000
#: Seconds of a day.
DAY = 86_400

if TYPE_CHECKING:
    from convrepro.runs.plan import Job
    from convrepro.tables import Table


def add_selection(verb: argparse.ArgumentParser) -> None:
    """Adds the arguments that select runs of a table: rows, seeds, budget, and overrides for all of them."""
    verb.add_argument("table", help="a table, such as hetconv/table1; a paper, such as hetconv; or all")
    verb.add_argument("overrides", nargs="*", help="more tables, and overrides for every row, such as trainer=gpu")
    verb.add_argument("--budget", default="paper", help="paper, proxy or smoke (default: paper)")
    verb.add_argument("--rows", default="", help="comma-separated rows (default: all)")
    verb.add_argument("--seeds", default="", help="seeds, such as 0,1,2 or 0..9 (default: the table's)")


def add_outside(verb: argparse.ArgumentParser) -> None:
    """Adds the options that name a user's own operators and configuration files."""
    plugin = "a module of yours that registers operators, such as my_package.ops; may be given several times"
    verb.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=plugin)
    folder = "a folder of yours with files such as conv/my_operator.yaml; may be given several times"
    verb.add_argument("--config-dir", action="append", default=[], metavar="FOLDER", help=folder)


def each_table(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments for each table that they name, directly, by a paper, or by `all`.

    Of a paper those tables are left out that have nothing to run. Raises ConvReproError for a name that does not exist.
    """
    words = [arguments.table, *arguments.overrides]
    names, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if not names:
        raise ConvReproError(f"{shown(words[0])} names no table; `convrepro list` lists them")
    found: dict[str, None] = {}
    for name in names:
        found |= {table.name: None for table in load_tables([name]) if "/" in name or table.to_run}
    return [argparse.Namespace(**{**vars(arguments), "table": name, "overrides": list(overrides)}) for name in found]


def selected(arguments: argparse.Namespace, runs: Path | None = None) -> "tuple[Table, list[Job]]":
    """The table and the jobs that the arguments of `add_selection` select.

    The run folders are in `runs`, by default where the configuration says. Raises ConvReproError for a table, row,
    budget or override that does not exist.
    """
    from convrepro.runs.plan import plan
    from convrepro.tables import load_table

    table = load_table(arguments.table)
    runs = runs or runs_of(arguments.overrides)
    seeds = seeds_of(arguments.seeds) or table.seeds
    rows = comma_separated(arguments.rows)
    return table, plan(table, budget=arguments.budget, rows=rows, seeds=seeds, extra=arguments.overrides, runs=runs)


def runs_of(overrides: Sequence[str]) -> Path:
    """The folder with the run folders by these overrides for a table's rows: others may fit the rows alone."""
    from convrepro.config.compose import compose_config
    from convrepro.config.overrides import key_of

    return Path(compose_config([text for text in overrides if key_of(text) in ("runs", "data_root")]).runs)


def add_runs_folder(verb: argparse.ArgumentParser) -> None:
    """Adds the argument that says where the run folders are. The default one need not exist."""
    default = Path(os.environ.get("CONVREPRO_RUNS", "runs"))
    verb.add_argument(
        "--runs",
        type=_folder,
        default=default,
        help="the folder with the run folders (default: %(default)s)",
    )


def _folder(text: str) -> Path:
    """The folder in an option. Raises argparse.ArgumentTypeError where there is none."""
    folder = Path(expanduser(text))
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{shown(str(folder))} is not a folder; give one that exists")
    return folder


def comma_separated(text: str) -> list[str]:
    """The words between the commas of `text`, without empty ones."""
    return [word for word in text.split(",") if word]


def describes_network(words: Sequence[str]) -> bool:
    """Whether the words are overrides that describe a network, such as model=resnet18, and not names of tables."""
    return any("=" in word for word in words)


def load_tables(names: Sequence[str]) -> "list[Table]":
    """The tables that `names` select, each once: a name is a table, `paper/name`, a paper, or `all`.

    Raises ConvReproError for a name that does not exist.
    """
    from convrepro.tables import list_tables

    known = [text for name in names for text in (list_tables() if name == "all" else [name])]
    return list({table.name: table for table in tables_of_papers(known)}.values())


def tables_of_papers(names: Sequence[str]) -> "list[Table]":
    """As `load_tables`, of tables and papers alone."""
    from convrepro.report.papers import paper_tables
    from convrepro.tables import load_table

    return [table for name in names for table in ([load_table(name)] if "/" in name else paper_tables(name))]


def whole(text: str) -> int:
    """The number in an option, of ASCII digits alone. Raises argparse.ArgumentTypeError for another text."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a whole number of at most 9 digits")
    return int(text)


def seconds(text: str) -> float:
    """The seconds in an option. Raises argparse.ArgumentTypeError for none, and for more than a day."""
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?", text) or not 0 < float(text) <= DAY:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a number of seconds above 0, at most {DAY}")
    return float(text)


def seeds_of(text: str) -> list[int]:
    """The seeds in an option, each once. Raises ConvReproError for what is no seed."""
    seeds: list[int] = []
    for word in comma_separated(text):
        match = re.fullmatch(r"([0-9]{1,10})(?:\.\.([0-9]{1,10}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**32 or last - first >= MOST_SEEDS:
            raise ConvReproError(
                f"--seeds {shown(text)} must be whole numbers below {2**32} with commas between, such as 0,1,2, or "
                f"ranges of at most {MOST_SEEDS}, such as 0..9"
            )
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))
