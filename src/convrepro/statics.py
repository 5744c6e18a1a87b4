"""What a table's rows cost: its static columns, counted without training."""

from collections.abc import Callable
from fractions import Fraction

from omegaconf import DictConfig

from convrepro import complexity
from convrepro.config import compose_config
from convrepro.errors import ConvReproError
from convrepro.surgery import SurgeryReport
from convrepro.tables import Table
from convrepro.train import build_network

Statics = dict[str, dict[str, int | Fraction]]


def count(cfg: DictConfig) -> tuple[complexity.Count, SurgeryReport]:
    """The cost of the network that `cfg` describes, at its data set's resolution, and what was replaced in it."""
    network, report = build_network(cfg)
    return complexity.count(network, (cfg.data.channels, cfg.data.image_size, cfg.data.image_size)), report


def count_network(cfg: DictConfig) -> str:
    """The layers of the network that `cfg` describes with their cost, as text."""
    counted, report = count(cfg)
    return f"{cfg.model}: {report.summary()}\n{counted.table()}\n{counted.headline()}"


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
            cfg.weights = None
            key = repr((cfg.model, cfg.model_args, cfg.conv, cfg.se_reduction, cfg.data.name))
            if key not in counted:
                counted[key] = count(cfg)[0]
        except ConvReproError as error:
            raise ConvReproError(f"{table.name}, row {row.id}: {error}") from error
        statics[row.id] = {name: complexity.RULES[rule].function(counted[key]) for name, rule in rules.items()}
    return statics
