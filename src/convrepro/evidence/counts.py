"""What a table's rows cost: its static columns, counted without training."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from fractions import Fraction
from functools import cache, partial
from itertools import chain, islice

from convrepro import complexity
from convrepro.complexity.network import count_network
from convrepro.config.compose import compose_config
from convrepro.config.schema import Conv, Prune, RunConfig
from convrepro.errors import ConvReproError
from convrepro.evidence import cores
from convrepro.models.build import build_network
from convrepro.models.surgery import SurgeryReport
from convrepro.ops.init import RepeatedFill
from convrepro.tables import Row, Table

_counted: dict[str, complexity.Count] = {}
"""The networks counted so far, by what they are built from."""


def count(cfg: RunConfig) -> tuple[complexity.Count, SurgeryReport]:
    """The cost of the network that `cfg` describes, at its data set's resolution, and what was replaced in it."""
    with RepeatedFill():
        network, report = build_network(cfg)
    return count_network(network, cfg, cfg.data.image_size), report


def describe_network(cfg: RunConfig) -> str:
    """The layers of the network that `cfg` describes with their cost, and the part of `conv=standard`'s, as text."""
    counted, report = count(cfg)
    lines = [f"{cfg.model}: {report.summary()}", counted.table(), counted.summary()]
    if report.replaced or report.pruned:
        standard = Conv(name="standard", where=cfg.conv.where or "dense_kxk")
        dense = count(cfg.model_copy(update={"conv": standard, "prune": Prune(), "weights": None}))[0]
        of = {rule: counted.total(rule) / Fraction(dense.total(rule)) for rule in ("macs", "params")}
        more = " (more than conv=standard)" if of["macs"] > 1 else ""
        macs, params = (f"{float(part):.3f}" for part in of.values())
        lines.append(f"of conv=standard: {macs} of the MACs{more}, {params} of the parameters")
    return "\n".join(lines)


def recount(
    rows: Sequence[tuple[Table, Row]], watch: Callable[[str], None]
) -> Iterator[tuple[tuple[Table, Row], dict[str, int | Fraction]]]:
    """Each row with its totals by counting rule; networks are counted once each, on all CPU cores where there are many.

    Raises ConvReproError with the table and the row where a network cannot be built, and where a process is killed.
    """
    places: dict[str, list[tuple[Table, Row]]] = {}

    def networks() -> Iterator[tuple[str, RunConfig]]:
        for table, row in rows:
            try:
                cfg = _composed(tuple(table.overrides(row)))
            except ConvReproError as error:
                raise _of(table, row, error) from error
            if (key := _network(cfg)) not in places:
                yield key, cfg
            places.setdefault(key, []).append((table, row))

    for done, (key, found) in enumerate(_counted_of(networks()), start=1):
        watch(f"counted {done} of {len(places)} networks")
        for table, row in places[key]:
            try:
                whole = found()
                part = whole.part(row.layers) if row.layers else whole
            except ConvReproError as error:
                raise _of(table, row, error) from error
            except BrokenExecutor as error:
                raise ConvReproError(cores.KILLED) from error
            yield (table, row), {rule: part.total(rule) for rule in complexity.RULES}


#: A network's count, or the error of one that cannot be built, once it is called.
_Found = Callable[[], complexity.Count]


def _counted_of(networks: Iterator[tuple[str, RunConfig]]) -> Iterator[tuple[str, _Found]]:
    first = list(islice(networks, cores.MANY))
    return (_at_once if cores.are_worth_it(len(first)) else _in_turn)(chain(first, networks))


def _in_turn(networks: Iterable[tuple[str, RunConfig]]) -> Iterator[tuple[str, _Found]]:
    for key, cfg in list(networks):
        yield key, partial(_once, key, cfg)


def _at_once(networks: Iterable[tuple[str, RunConfig]]) -> Iterator[tuple[str, _Found]]:
    with cores.pool(__name__) as pool:
        pending = {pool.submit(_count, cfg): key for key, cfg in networks}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result
        finally:
            pool.shutdown(cancel_futures=True)


def _count(cfg: RunConfig) -> complexity.Count:
    return count(cfg)[0]


def _once(key: str, cfg: RunConfig) -> complexity.Count:
    if key not in _counted:
        _counted[key] = _count(cfg)
    return _counted[key]


def _of(table: Table, row: Row, error: ConvReproError) -> ConvReproError:
    return ConvReproError(f"{table.name}, row {row.id}: {error}")


def _network(cfg: RunConfig) -> str:
    size = (cfg.data.channels, cfg.data.image_size, cfg.data.num_classes)
    return repr((cfg.model, cfg.model_args, cfg.conv, cfg.prune, cfg.se_reduction, size))


def row_count(table: Table, row: Row) -> complexity.Count:
    """The layers that the row's counts are of; a network is counted once in a process."""
    cfg = _composed(tuple(table.overrides(row)))
    whole = _once(_network(cfg), cfg)
    return whole.part(row.layers) if row.layers else whole


def forget() -> None:
    """Count networks anew that were counted in this process, to time it."""
    _counted.clear()
    _composed.cache_clear()


@cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    """The configuration of rows with these overrides, as untrained networks: a table of layers has one for all rows."""
    return compose_config(overrides).model_copy(update={"weights": None})
