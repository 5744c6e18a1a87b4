"""What a table's rows cost: its static columns, counted without training."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache

from convrepro import complexity
from convrepro.complexity.network import count_network
from convrepro.config.compose import compose_config
from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from convrepro.models.surgery import SurgeryReport
from convrepro.ops.init import RepeatedFill
from convrepro.tables import Row, Table

_counted: dict[str, complexity.Count] = {}
"""The networks counted so far, by what they are built from."""

Statics = dict[str, dict[str, int | Fraction]]


def count(cfg: RunConfig) -> tuple[complexity.Count, SurgeryReport]:
    """The cost of the network that `cfg` describes, at its data set's resolution, and what was replaced in it."""
    with RepeatedFill():
        network, report = build_network(cfg)
    return count_network(network, cfg, cfg.data.image_size), report


def describe_network(cfg: RunConfig) -> str:
    """The layers of the network that `cfg` describes with their cost, as text."""
    counted, report = count(cfg)
    return f"{cfg.model}: {report.summary()}\n{counted.table()}\n{counted.headline()}"


def count_table(table: Table, watch: Callable[[str], None] = lambda row: None) -> Statics:
    """Row id -> metric -> exact value, for each row that is run and each metric that names a counting rule.

    Raises ConvReproError naming the row that cannot be built.
    """
    rules = {name: metric.count for name, metric in table.metrics.items() if metric.count}
    statics: Statics = {}
    for row in table.rows:
        if row.quoted or not rules:
            continue
        watch(row.id)
        try:
            counted = row_count(table, row)
        except ConvReproError as error:
            raise ConvReproError(f"{table.name}, row {row.id}: {error}") from error
        statics[row.id] = {name: counted.total(rule) for name, rule in rules.items()}
    return statics


def row_count(table: Table, row: Row) -> complexity.Count:
    """The layers that the row's counts are of; a network is counted once in a process."""
    cfg = _composed(tuple(table.overrides(row)))
    size = (cfg.data.channels, cfg.data.image_size, cfg.data.num_classes)
    key = repr((cfg.model, cfg.model_args, cfg.conv, cfg.se_reduction, size))
    if key not in _counted:
        _counted[key] = count(cfg)[0]
    return _counted[key].part(row.layers) if row.layers else _counted[key]


def forget() -> None:
    """Count networks anew that were counted in this process, to time it."""
    _counted.clear()
    _composed.cache_clear()


@cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    """The configuration of rows with these overrides, as untrained networks: a table of layers has one for all rows."""
    return compose_config(overrides).model_copy(update={"weights": None})
