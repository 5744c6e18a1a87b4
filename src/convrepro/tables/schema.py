"""What a table's YAML may say, and the rules that it must keep."""

import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from typing import NoReturn, TypeVar, get_args, get_origin, get_type_hints

from convrepro.errors import ConvReproError

CONFIDENCES = ("found", "derived", "recalled")
UNITS = {"1": 1, "k": 10**3, "M": 10**6, "G": 10**9}
PRINTED = ("floor", "round")
EPOCHS = ("last", "best")
BASES = ("printed", "exact")

T = TypeVar("T")


def fail(place: str, rule: str) -> NoReturn:
    raise ConvReproError(f"{place}: {rule}")


def setting(override: str) -> tuple[str, str]:
    """A Hydra override as (key, value): `+model_args.se_reduction=8` -> ("model_args.se_reduction", "8")."""
    key, _, value = override.partition("=")
    return key.lstrip("+"), value.strip("'\"")


def settings(overrides: Iterable[str]) -> dict[str, str]:
    """A list of overrides as key -> value; of two for one key the last wins, as in Hydra."""
    return dict(setting(override) for override in overrides)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which table of which paper; `table` is its number, or words where the number is not known."""

    paper: str
    arxiv: str
    table: int | str
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A value that the paper prints, with its source.

    `found`: read in the source named; `derived`: exact arithmetic reproduces the printed digits; `recalled`: not
    verified, shown with a mark and never deciding a verdict. An unknown value is None, never a guess. The digits are
    those printed, closing zeros included.
    """

    value: Decimal | None
    source: str = ""
    confidence: str = ""
    note: str = ""

    @property
    def decides(self) -> bool:
        return self.value is not None and self.confidence != "recalled"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column. `decimals`: digits printed after the point; `count`: the counting rule, "" where none counts it."""

    name: str
    unit: str
    decimals: int = 2
    count: str = ""


@dataclass(frozen=True, kw_only=True)
class Trained(Metric):
    """Measured by running: `run_metric` of the `last` (or `best`) epoch, or 100 minus it (`complement`: an error).

    Reproduced when the mean over the table's seeds is within `tol` of the published value; `why` gives the reason for
    the tolerance, which is set before the first run.
    """

    tol: Decimal
    why: str
    run_metric: str = ""
    epoch: str = "last"
    complement: bool = False


@dataclass(frozen=True, kw_only=True)
class Counted(Metric):
    """Static: the counting rule `count`, in `unit`, cut (`floor`) or rounded half up at `decimals`."""

    decimals: int
    printed: str
    paper_unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Reduction(Metric):
    """Static: 100 (1 - x / x of `base_row`); x is the metric `reduction_of`, `from` its printed or exact figures."""

    decimals: int
    printed: str
    reduction_of: str
    base_row: str
    from_: str = "exact"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a list of Hydra overrides, or `quoted` from other work (shown, not run).

    `weights_from`: the row whose trained checkpoint of the same seed this one starts from.
    `same_as`: `paper/table/row` whose runs these are too, so that nothing is trained twice.
    """

    id: str
    label: str
    overrides: tuple[str, ...] = ()
    published: Mapping[str, Published]
    quoted: bool = False
    weights_from: str = ""
    same_as: str = ""
    erratum: str = ""
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the table is for: `min_delta` <= metric(left) - metric(right) <= `max_delta`, in the metric's unit.

    Without `right`, the bounds are those of metric(left) itself.
    """

    text: str
    left: str
    metric: str
    right: str = ""
    min_delta: Decimal | None = None
    max_delta: Decimal | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a paper; `name` is `paper/table`, as its file is called."""

    name: str
    title: str
    source: Source
    question: str
    base: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Metric]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    deviations: tuple[str, ...] = ()
    notes: str = ""

    @property
    def to_run(self) -> tuple[Row, ...]:
        """The rows that have runs of their own: neither quoted nor run as another table's row."""
        return tuple(r for r in self.rows if not r.quoted and not r.same_as)

    def row(self, row_id: str) -> Row:
        for row in self.rows:
            if row.id == row_id:
                return row
        raise ConvReproError(f"{self.name} has no row {row_id!r}; valid: {', '.join(r.id for r in self.rows)}")

    def overrides(self, row: Row) -> tuple[str, ...]:
        """The whole override list of a row: the table's base, then the row's own."""
        return (*self.base, *row.overrides)

    def settings(self, row: Row) -> dict[str, str]:
        """What the row's overrides come to: key -> value, the last one winning as in Hydra."""
        return settings(self.overrides(row))


def _convert(value: object, hint: object, place: str, key: str) -> object:
    """`value` as the annotated type; numbers keep their printed digits as Decimal."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is Decimal and isinstance(value, Decimal | int) and not isinstance(value, bool):
            return Decimal(value)
        if option is types.NoneType and value is None:
            return None
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option in (str, bool) and isinstance(value, option):
            return value
        if get_origin(option) is tuple and isinstance(value, list):
            return tuple(_convert(v, get_args(option)[0], place, f"an item of {key}") for v in value)
    words = {Decimal: "a number", int: "a whole number", str: "text", bool: "true or false", types.NoneType: "null"}
    wanted = " or ".join(words.get(o, "a list") for o in options)
    fail(place, f"`{key}` must be {wanted}, not {str(value)!r}")


def _build(cls: type[T], data: object, place: str, **given: object) -> T:
    """An instance of the dataclass from a mapping, with unknown and missing keys and wrong types told."""
    if not isinstance(data, Mapping):
        fail(place, f"must be a mapping, not {data!r}")
    hints = get_type_hints(cls)
    keys = {f.name.rstrip("_"): f for f in fields(cls) if f.name not in given}
    if unknown := [k for k in data if k not in keys]:
        valid = [f.name.rstrip("_") for f in fields(cls) if f.name != "name"]
        fail(place, f"unknown key {unknown[0]!r}; valid: {', '.join(valid)}")
    if missing := [k for k, f in keys.items() if f.default is MISSING and k not in data]:
        fail(place, f"`{missing[0]}` is missing")
    values = {keys[k].name: _convert(v, hints[keys[k].name], place, k) for k, v in data.items()}
    return cls(**values, **given)


def _choice(value: str, valid: tuple[str, ...], place: str, key: str) -> None:
    if value not in valid:
        fail(place, f"`{key}` is {value!r}; valid: {', '.join(valid)}")


def _metric(name: str, data: object, place: str) -> Metric:
    place = f"{place}: metric {name!r}"
    if not isinstance(data, Mapping):
        fail(place, f"must be a mapping, not {data!r}")
    if "count" not in data and "reduction_of" not in data:
        if "tol" not in data:
            fail(place, "a trained metric needs a tolerance `tol` (a static one needs `count` or `reduction_of`)")
        metric = _build(Trained, {"run_metric": name, **data}, place, name=name)
        _choice(metric.epoch, EPOCHS, place, "epoch")
        if metric.tol <= 0:
            fail(place, f"`tol` is {metric.tol}, but must be above 0")
        return metric
    if missing := [k for k in ("decimals", "printed") if k not in data]:
        fail(place, f"a static metric needs its rounding: `{missing[0]}` is missing")
    if "count" in data and "reduction_of" in data:
        fail(place, "is either counted (`count`) or computed from another metric (`reduction_of`), not both")
    metric = _build(Reduction if "reduction_of" in data else Counted, data, place, name=name)
    _choice(metric.printed, PRINTED, place, "printed")
    if isinstance(metric, Reduction):
        _choice(metric.from_, BASES, place, "from")
    else:
        _choice(metric.unit, tuple(UNITS), place, "unit")
    return metric


def _published(name: str, data: object, metrics: Mapping[str, Metric], place: str) -> Published:
    if name not in metrics:
        fail(place, f"publishes {name!r}, which the table does not declare; its metrics: {', '.join(metrics)}")
    place = f"{place}: published {name!r}"
    published = _build(Published, data, place)
    if published.value is None:
        return published
    _choice(published.confidence, CONFIDENCES, place, "confidence")
    if not published.source:
        fail(place, f"a value that is {published.confidence} needs a source")
    return published


def _row(data: object, metrics: Mapping[str, Metric], place: str) -> Row:
    row_id = data.get("id", "") if isinstance(data, Mapping) else ""
    place = f"{place}: row {row_id!r}"
    values = dict(data) if isinstance(data, Mapping) else data
    published = values.pop("published", {}) if isinstance(values, dict) else {}
    if not isinstance(published, Mapping):
        fail(place, f"`published` must be a mapping, not {published!r}")
    row = _build(Row, values, place, published={k: _published(k, v, metrics, place) for k, v in published.items()})
    if not re.fullmatch(r"[a-z0-9_]+", row.id):
        fail(place, "an id names a folder: lower-case letters, digits and underscores")
    if row.quoted and (row.overrides or row.weights_from or row.same_as):
        fail(place, "a quoted row is not run, so it has no overrides, `weights_from` or `same_as`")
    if row.same_as and (row.overrides or row.weights_from):
        fail(place, "a row that is the same as another has no overrides or `weights_from` of its own")
    if not (row.overrides or row.quoted or row.same_as):
        fail(place, "a row needs overrides, even if only `conv=standard`")
    for name, value in row.published.items():
        decimals = metrics[name].decimals
        if not row.quoted and value.value is not None and -value.value.as_tuple().exponent > decimals:
            fail(place, f"published {name!r} is {value.value}: more digits than the {decimals} decimals of the metric")
    if bad := [o for o in row.overrides if "=" not in o]:
        fail(place, f"{bad[0]!r} is no override; write key=value")
    return row


def _check_weights(row: Row, rows: Mapping[str, Row], place: str) -> None:
    seen = [row.id]
    while source := rows[seen[-1]].weights_from:
        where = f"{place}: row {seen[-1]!r}"
        if source not in rows:
            fail(where, f"`weights_from` names no row of the table: {source!r}; valid: {', '.join(rows)}")
        if rows[source].quoted:
            fail(where, f"`weights_from` names the quoted row {source!r}, which is not run")
        if source in seen:
            fail(where, f"`weights_from` goes round in a circle: {' -> '.join([*seen, source])}")
        seen.append(source)


def _check_claim(claim: Claim, table: Table, place: str) -> None:
    place = f"{place}: claim {claim.text!r}"
    ids = [row.id for row in table.rows]
    for side in (claim.left, claim.right or claim.left):
        if side not in ids:
            fail(place, f"names no row of the table: {side!r}; valid: {', '.join(ids)}")
    if claim.metric not in table.metrics:
        fail(place, f"names no metric of the table: {claim.metric!r}; valid: {', '.join(table.metrics)}")
    if claim.min_delta is None and claim.max_delta is None:
        fail(place, "needs `min_delta`, `max_delta` or both")


def parse_table(name: str, data: object, place: str) -> Table:
    """A checked Table from the YAML's content; raises ConvReproError naming `place`, the row and the rule."""
    if not isinstance(data, Mapping):
        fail(place, "must be a mapping")
    parts = {key: data.get(key) for key in ("source", "metrics", "rows", "claims")}
    for key, kind, word in (("metrics", dict, "mapping"), ("rows", list, "list"), ("claims", list, "list")):
        if not isinstance(parts[key] or kind(), kind):
            fail(place, f"`{key}` must be a {word}")
    if not parts["metrics"] or not parts["rows"]:
        fail(place, "a table needs `metrics` and `rows`")
    metrics = {k: _metric(k, v, place) for k, v in parts["metrics"].items()}
    table = _build(
        Table,
        {k: v for k, v in data.items() if k not in parts},
        place,
        name=name,
        source=_build(Source, parts["source"], f"{place}: source"),
        metrics=metrics,
        rows=tuple(_row(r, metrics, place) for r in parts["rows"]),
        claims=tuple(_build(Claim, c, f"{place}: claim") for c in parts["claims"] or []),
    )
    if table.source.paper != name.split("/")[0]:
        fail(place, f"`source` names the paper {table.source.paper!r}, but the table is in another's folder")
    ids = [row.id for row in table.rows]
    if duplicates := [i for i in ids if ids.count(i) > 1]:
        fail(place, f"row {duplicates[0]!r} is there twice; an id must be unique")
    if not table.seeds or len(set(table.seeds)) != len(table.seeds):
        fail(place, f"`seeds` is {list(table.seeds)}, but must name each seed once")
    rows = dict(zip(ids, table.rows, strict=True))
    for row in table.rows:
        _check_weights(row, rows, place)
    for metric in metrics.values():
        if isinstance(metric, Reduction):
            where = f"{place}: metric {metric.name!r}"
            if not isinstance(metrics.get(metric.reduction_of), Counted):
                fail(where, f"`reduction_of` names no counted metric: {metric.reduction_of!r}")
            if metric.base_row not in rows or rows[metric.base_row].quoted:
                fail(where, f"`base_row` names no row that is counted: {metric.base_row!r}")
    for claim in table.claims:
        _check_claim(claim, table, place)
    return table
