"""Finds the tables on disk and loads them by name.

Numbers with a point become Decimal, so that a published 89.90 keeps its digits. OmegaConf would make it a float, and
take ten times as long to list the tables.
"""

import os
import re
from collections.abc import Hashable
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from convrepro.config.nearest import nearest
from convrepro.config.overrides import shown
from convrepro.config.paths import REPRODUCTIONS, VARIABLE, table_names
from convrepro.errors import ConvReproError
from convrepro.tables.parse import DIGITS, fail, parse_table
from convrepro.tables.schema import Row, Table, settings

#: Bytes that the file of a table has at most.
LARGEST = 1_000_000
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")


class _Loader(_BASE):
    """Safe YAML with numbers as they are printed, and no key given twice.

    A number is decimal and exact. What YAML 1.1 also reads as one (010 as octal, 0x10, 1:30 as sexagesimal, 2_9) stays
    text, which a table then rejects where it wants a number.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
        for first, resolvers in _BASE.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> Decimal:
        try:
            return Decimal(node.value)
        except InvalidOperation as error:
            problem = f"{node.value!r} is not a decimal number"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_integer(self, node: yaml.ScalarNode) -> int | Decimal:
        return int(node.value) if len(node.value) <= DIGITS else self.construct_decimal(node)


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_decimal)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^{_INTEGER.pattern}$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^({_DECIMAL.pattern})$"), list("-+.0123456789"))


def list_tables(root: Path = REPRODUCTIONS) -> list[str]:
    """Names of all tables under `root`, sorted: `paper/table`."""
    return table_names(root)


def list_papers(root: Path = REPRODUCTIONS) -> list[str]:
    """Names of the papers that have tables, sorted."""
    return sorted({name.split("/")[0] for name in list_tables(root)})


def load_table(name: str, root: Path = REPRODUCTIONS) -> Table:
    """The table `paper/table`, checked.

    Raises ConvReproError for an unknown name (with the nearest ones), and for a file that breaks a rule.
    """
    table = _read(name, root)
    return replace(table, rows=tuple(_resolve(row, table, root) if row.same_as else row for row in table.rows))


def find_table(name: str | None, root: Path = REPRODUCTIONS) -> Table | None:
    """Returns the table of this name, or None if it no longer exists, as for runs of a table that was removed."""
    return load_table(name, root) if name in list_tables(root) else None


def _read(name: str, root: Path) -> Table:
    names = list_tables(root)
    if name not in names:
        own = "" if os.environ.get(VARIABLE) else f"; {VARIABLE}=FOLDER finds your own, FOLDER/paper/table.yaml"
        raise ConvReproError(f"there is no table {shown(name)}; {nearest(name, names, 'convrepro list')}{own}")
    path = root / f"{name}.yaml"
    place = f"{root.name}/{name}.yaml"
    try:
        if not path.is_file():
            raise ConvReproError(f"{place}: is not a file")
        if (size := path.stat().st_size) > LARGEST:
            raise ConvReproError(f"{place}: has {size:,} bytes, but a table has at most {LARGEST:,}")
        return _parsed(name, place, path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ConvReproError):
            raise
        raise ConvReproError(f"{place}: cannot be read as YAML: {' '.join(str(error).split())}") from error


@cache
def _parsed(name: str, place: str, text: str) -> Table:
    """The table in the text of a file; several tables name rows of another one, which is parsed once."""
    return parse_table(name, yaml.load(text, _Loader), place)


def _resolve(row: Row, table: Table, root: Path) -> Row:
    """The row with the overrides of the one that it is the same as, the other table's base among them."""
    place = f"{root.name}/{table.name}.yaml: row {row.id!r}: `same_as: {row.same_as}`"
    other_name, _, other_id = row.same_as.rpartition("/")
    other = _read(other_name, root)
    target = other.row(other_id)
    if target.quoted or target.same_as:
        fail(place, "names a row without runs of its own")
    if other.seeds != table.seeds:
        fail(place, "names a row with other seeds")
    if target.weights_from:
        fail(place, "names a row that starts from another's weights")
    overrides = other.overrides(target)
    if added := settings(table.base).keys() - settings(overrides).keys():
        fail(place, f"names a row that has no {', '.join(sorted(added))}, which this table's base gives")
    return replace(row, overrides=target.overrides if other.base == table.base else overrides)
