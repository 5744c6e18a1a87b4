"""The static columns of tables: what each row costs, from the cache where it is known."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from convrepro.evidence.count_cache import CountCache
from convrepro.evidence.store import load_evidence
from convrepro.tables import Statics, Table


def count_table(table: Table, watch: Callable[[str], None] = lambda told: None) -> Statics:
    """`count_tables` of one table."""
    return count_tables([table], watch)[table.name]


def at_hand(table: Table, watch: Callable[[str], None] = lambda told: None) -> Statics:
    """The counts that the table's evidence holds; counted, where it lacks one of them."""
    kept = load_evidence(table)[0]
    return kept if not lacking(table, kept) else count_table(table, watch)


def lacking(table: Table, statics: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The rows without a count of each metric that names a counting rule."""
    return [row.id for row in table.rows if not row.quoted and not _rules(table).keys() <= statics[row.id].keys()]


def count_tables(
    tables: Sequence[Table], watch: Callable[[str], None] = lambda told: None, cache: CountCache | None = None
) -> dict[str, Statics]:
    """Table -> row id -> metric -> exact value, for each row that is run and each metric that names a counting rule.

    Counts are read from `cache` (by default the user's). Networks that it lacks are counted once each, on all CPU
    cores, and after each of them `watch` is called with the progress. Raises ConvReproError with the table and the row
    where a network cannot be built.
    """
    cache = cache or CountCache.of_user()
    wanted = [(table, row) for table in tables for row in table.rows if not row.quoted and _rules(table)]
    totals = {(table.name, row.id): cache.get(table.overrides(row), row.layers) for table, row in wanted}
    missing = [(t, row) for t, row in wanted if not {*_rules(t).values()} <= (totals[t.name, row.id] or {}).keys()]
    if missing:
        from convrepro.evidence.counts import recount  # imports torch

        for (table, row), counted in recount(missing, watch):
            cache.put(table.overrides(row), row.layers, counted)
            totals[table.name, row.id] = counted
    statics: dict[str, dict[str, dict[str, int | Fraction]]] = {table.name: {} for table in tables}
    for table, row in wanted:
        known = totals[table.name, row.id] or {}
        statics[table.name][row.id] = {name: known[rule] for name, rule in _rules(table).items()}
    return {**statics}


def _rules(table: Table) -> dict[str, str]:
    return {name: metric.count for name, metric in table.metrics.items() if metric.count}
