"""The suite of `convrepro bench all`: each operator in one network, and the main networks of the papers."""

from pathlib import Path

import yaml

from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError
from convrepro.evidence.speed import Pair
from convrepro.evidence.speed_record import OPERATORS
from convrepro.tables import load_table

SUITE = REPRODUCTIONS / "speed.yaml"


def suite(path: Path = SUITE) -> list[Pair]:
    """Reads the pairs of a suite. The group of a pair is "operators", or the table `paper/name` that has its rows.

    Raises ConvReproError for a row that a table does not run.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    operators = content[OPERATORS]
    base = tuple(operators["base"])
    pairs = [
        Pair(name, (*base, *words.split()), "standard", base, operators["batch_size"], OPERATORS)
        for name, words in operators["rows"].items()
    ]
    for name, networks in content["networks"].items():
        table = load_table(name)
        runnable = {row.id: row for row in table.rows if not row.quoted}
        for rows in networks["against"].items():
            if unknown := [row for row in rows if row not in runnable]:
                raise ConvReproError(f"{path}: {name} runs no row {unknown[0]!r}; valid: {', '.join(runnable)}")
            own, other = (tuple(table.overrides(runnable[row])) for row in rows)
            pairs.append(Pair(rows[0], own, rows[1], other, networks["batch_size"], name))
    return pairs
