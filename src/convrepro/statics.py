"""What a table's rows cost: its static columns, counted without training."""

from collections.abc import Callable
from fractions import Fraction

from convrepro import complexity
from convrepro.config import compose_config
from convrepro.errors import ConvReproError
from convrepro.tables import Table
from convrepro.train import build_network

Statics = dict[str, dict[str, int | Fraction]]


def count_table(table: Table, watch: Callable[[str], None] = lambda row: None) -> Statics:
    """Row id -> metric -> exact value, for each row that is run and each metric that names a counting rule.

    Rows that describe the same network are counted once. Raises ConvReproError naming the row that cannot be built.
    """
    rules = {name: metric.count for name, metric in table.metrics.items() if metric.count}
    counted: dict[str, complexity.Count] = {}
    statics: Statics = {}
    for row in table.rows:
        if row.quoted:
            continue
        watch(row.id)
        try:
            cfg = compose_config(table.overrides(row))
            key = repr((cfg.model, cfg.model_args, cfg.conv, cfg.se_reduction, cfg.data.name))
            if key not in counted:
                cfg.weights = None
                network, _ = build_network(cfg)
                size = (cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
                counted[key] = complexity.count(network, size)
        except ConvReproError as error:
            raise ConvReproError(f"{table.name}, row {row.id}: {error}") from error
        statics[row.id] = {name: complexity.RULES[rule].function(counted[key]) for name, rule in rules.items()}
    return statics
