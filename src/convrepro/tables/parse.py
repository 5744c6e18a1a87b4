"""A table from the content of its YAML, and the rules that it must keep: every mistake names file, row and rule."""

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from decimal import Decimal
from functools import cache
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from convrepro.config.overrides import key_of
from convrepro.config.secrets import refuse_secrets
from convrepro.config.strict import text_of
from convrepro.errors import ConvReproError, visible
from convrepro.tables.schema import (
    CAUSES,
    COUNTING_RULES,
    RUN_METRICS,
    UNITS,
    Claim,
    Counted,
    Metric,
    NotMeasured,
    Published,
    Reduction,
    Relative,
    Row,
    Share,
    Source,
    Table,
    Trained,
)

CONFIDENCES = ("found", "derived", "measured", "recalled")
#: Digits that a number in a table may have; a paper prints fewer.
DIGITS = 30
#: Points or other units that a trained value may be off and count as reproduced, at most.
TOLERANCE = 10
PRINTED = ("floor", "round")
EPOCHS = ("last", "best")
BASES = ("printed", "exact")

T = TypeVar("T")


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


def fail(place: str, rule: str) -> NoReturn:
    raise ConvReproError(f"{place}: {rule}")


def _convert(value: object, hint: object, place: str, key: str) -> object:
    """`value` as the annotated type; numbers keep their printed digits as Decimal."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is Decimal and isinstance(value, Decimal | int) and not isinstance(value, bool):
            return _short(Decimal(value), place, key)
        if option is types.NoneType and value is None:
            return None
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is str and isinstance(value, str):
            return _shown(value, place, f"`{key}`")
        if option is bool and isinstance(value, bool):
            return value
        if get_origin(option) is tuple and isinstance(value, list):
            return tuple(_convert(v, get_args(option)[0], place, f"an item of {key}") for v in value)
    words = {Decimal: "a number", int: "a whole number", str: "text", bool: "true or false", types.NoneType: "null"}
    wanted = " or ".join(words.get(o, "a list") for o in options)
    fail(place, f"`{key}` must be {wanted}, not {text_of(value)!r}")


def _shown(text: str, place: str, what: str) -> str:
    """`text`, which has no character that a terminal or a page would obey instead of showing it."""
    if visible(text) != text:
        fail(place, f"{what} has a control character: {text_of(text)!r}")
    return text


def _short(value: Decimal, place: str, key: str) -> Decimal:
    """`value`, of no more digits than a paper prints."""
    digits, exponent = len(value.as_tuple().digits), value.as_tuple().exponent
    if not isinstance(exponent, int) or digits > DIGITS or abs(exponent) > DIGITS:
        fail(place, f"`{key}` has {digits} digits, but a number has at most {DIGITS} before and after its point")
    return value


def _decimals(value: Decimal) -> int:
    """Digits printed after the point."""
    return len(f"{value:f}".partition(".")[2])


def _build(cls: type[T], data: object, place: str, **given: object) -> T:
    """Returns an instance of the dataclass from a mapping. Names unknown and missing keys and wrong types."""
    if not isinstance(data, Mapping):
        fail(place, f"must be a mapping, not {data!r}")
    hints = _hints(cls)
    keys = {f.name.rstrip("_"): f for f in _fields(cls) if f.name not in given}
    if unknown := [k for k in data if k not in keys]:
        valid = [f.name.rstrip("_") for f in _fields(cls) if f.name != "name"]
        fail(place, f"unknown key {unknown[0]!r}; valid: {', '.join(valid)}")
    if missing := [k for k, f in keys.items() if f.default is MISSING and k not in data]:
        fail(place, f"`{missing[0]}` is missing")
    values = {keys[k].name: _convert(v, hints[keys[k].name], place, k) for k, v in data.items()}
    return cls(**values, **given)


def _choice(value: str, valid: tuple[str, ...], place: str, key: str) -> None:
    if value not in valid:
        fail(place, f"`{key}` is {value!r}; valid: {', '.join(valid)}")


STATIC: dict[str, type[Counted | Relative]] = {"count": Counted, "reduction_of": Reduction, "share_of": Share}
"""How a static metric comes about: the key that says so, and what it makes the metric."""


def _metric(name: str, data: object, place: str) -> Metric:
    place = f"{place}: metric {name!r}"
    if not isinstance(data, Mapping):
        fail(place, f"must be a mapping, not {data!r}")
    if "not_measured" in data:
        return _build(NotMeasured, data, place, name=name)
    ways = [key for key in STATIC if key in data]
    if not ways:
        return _trained(name, data, place)
    if len(ways) > 1:
        fail(place, f"is either counted (`count`) or computed from another metric, not both: {', '.join(ways)}")
    if missing := [k for k in ("decimals", "printed") if k not in data]:
        fail(place, f"a static metric needs its rounding: `{missing[0]}` is missing")
    metric: Counted | Relative = _build(STATIC[ways[0]], data, place, name=name)
    _choice(metric.printed, PRINTED, place, "printed")
    if isinstance(metric, Relative):
        _choice(metric.from_, BASES, place, "from")
    else:
        _choice(metric.unit, tuple(UNITS), place, "unit")
        _choice(metric.count, COUNTING_RULES, place, "count")
    if not 0 <= metric.decimals <= DIGITS:
        fail(place, f"`decimals` is {metric.decimals}, but must be from 0 to {DIGITS}")
    return metric


def _trained(name: str, data: Mapping, place: str) -> Trained:
    if "tol" not in data:
        fail(place, f"a trained metric needs a tolerance `tol`; a static one needs one of {', '.join(STATIC)}")
    metric = _build(Trained, {"run_metric": name, **data}, place, name=name)
    _choice(metric.epoch, EPOCHS, place, "epoch")
    _choice(metric.run_metric, RUN_METRICS, place, "run_metric")
    if not 0 < metric.tol <= TOLERANCE:
        fail(place, f"`tol` is {metric.tol}, but must be above 0 and at most {TOLERANCE}")
    return metric


def _published(name: str, data: object, metrics: Mapping[str, Metric], place: str) -> Published:
    if name not in metrics:
        fail(place, f"publishes {name!r}, which the table does not declare; its metrics: {', '.join(metrics)}")
    place = f"{place}: published {name!r}"
    published = _build(Published, data, place)
    if published.value is None:
        return published
    _choice(published.confidence, CONFIDENCES, place, "confidence")
    _check_range(published.value, metrics[name], place)
    if bool(published.cause) != bool(published.erratum):
        fail(place, "`cause` and `erratum` go together")
    if published.cause:
        _choice(published.cause, tuple(CAUSES), place, "cause")
        if not isinstance(metrics[name], Counted | Relative):
            fail(place, "has a `cause`, but only static values can be recomputed")
    if not published.source:
        fail(place, f"a value that is {published.confidence} needs a source")
    return published


def _check_range(value: Decimal, metric: Metric, place: str) -> None:
    """Hold a published value to what its metric can be."""
    if isinstance(metric, Counted) and value < 0:
        fail(place, f"is {value}, but what is counted is at least 0")
    if isinstance(metric, Relative) and not -1000 <= value <= 1000:
        fail(place, f"is {value} %, but a share or reduction is from -1000 to 1000 %")
    if isinstance(metric, Trained) and metric.run_metric.startswith("top") and not 0 <= value <= 100:
        fail(place, f"is {value} %, but an accuracy is from 0 to 100 %")


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
    if row.quoted and (row.overrides or row.weights_from or row.same_as or row.layers):
        fail(place, "a quoted row is not run, so it has no overrides, `weights_from`, `same_as` or `layers`")
    if row.same_as and (row.overrides or row.weights_from):
        fail(place, "a row that is the same as another has no overrides or `weights_from` of its own")
    if not (row.overrides or row.quoted or row.same_as):
        fail(place, "a row needs overrides, even if only `conv=standard`")
    for name, value in row.published.items():
        decimals = metrics[name].decimals
        if not row.quoted and value.value is not None and _decimals(value.value) > decimals:
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
        if rows[source].same_as:
            fail(where, f"`weights_from` names the row {source!r}, which is {rows[source].same_as} and is not run here")
        if given := [o for o in rows[seen[-1]].overrides if key_of(o) == "weights"]:
            fail(where, f"starts from two checkpoints: `weights_from` {source!r} and the override {given[0]!r}")
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
    if claim.min_delta is not None and claim.max_delta is not None and claim.min_delta > claim.max_delta:
        fail(place, f"holds for nothing: `min_delta` {claim.min_delta} is above `max_delta` {claim.max_delta}")


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
    metrics = {_shown(str(k), place, "a metric's name"): _metric(k, v, place) for k, v in parts["metrics"].items()}
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
    for overrides, where in ((table.base, place), *((row.overrides, f"{place}: row {row.id!r}") for row in table.rows)):
        try:
            refuse_secrets(overrides)
        except ConvReproError as error:
            fail(where, str(error))
    if not table.seeds or len(set(table.seeds)) != len(table.seeds):
        fail(place, f"`seeds` is {list(table.seeds)}, but must name each seed once")
    rows = dict(zip(ids, table.rows, strict=True))
    for row in table.rows:
        _check_weights(row, rows, place)
    for metric in metrics.values():
        if isinstance(metric, Relative):
            where = f"{place}: metric {metric.name!r}"
            if not isinstance(metrics.get(metric.of), Counted):
                fail(where, f"is a percentage of {metric.of!r}, which is no counted metric")
            if metric.base_row not in rows or rows[metric.base_row].quoted:
                fail(where, f"`base_row` names no row that is counted: {metric.base_row!r}")
    for claim in table.claims:
        _check_claim(claim, table, place)
    return table
