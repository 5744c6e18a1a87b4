"""Runs that are changed from a row's protocol, under the name that they have then: row+digest."""

from collections.abc import Sequence

from convrepro.config.compose import compose_config
from convrepro.config.overrides import value_of, without
from convrepro.runs.identity import Identity
from convrepro.runs.plan import variant
from convrepro.tables import load_table

TABLE, ROW = "deepshift/mnist_v5", "fc_q"


def named(overrides: Sequence[str], table: str = TABLE, row: str = ROW) -> list[str]:
    """The overrides with the table and the row of which they are a variant, in the place of any names in them."""
    plain, read = without(overrides, "table", "row"), load_table(table)
    budget = value_of(plain, "budget") or "paper"
    own = compose_config([*read.overrides(read.row(row)), f"budget={budget}"])
    return [*plain, f"table={table}", f"row={row}{variant(own, compose_config(plain))}"]


def identity(overrides: Sequence[str], table: str = TABLE, row: str = ROW) -> Identity:
    """Who the run of these overrides is."""
    words = named(overrides, table, row)
    seed, budget = value_of(words, "seed") or "0", value_of(words, "budget") or "paper"
    return Identity(table, str(value_of(words, "row")), int(seed), budget)
