"""The scientific part of a configuration: the settings that determine a result, as `schema` declares them."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from convrepro.config.overrides import settings
from convrepro.config.plan import defaults, whole_plan
from convrepro.config.schema import EXECUTION, RunConfig
from convrepro.errors import ConvReproError

Tree = dict[str, Any]
#: Scientific settings that have a place of their own: the seed in a run's name, the weights by their content.
APART = ("seed", "weights", "weights_sha256")


def scientific(config: RunConfig | Mapping[str, Any]) -> Tree:
    """The settings of a configuration that determine the result.

    Also of a configuration on record: keys that came later have their defaults, and keys that are gone are left out.
    Settings at a default of the schema are left out, so that a setting that is added to it changes no digest.
    """
    tree = config.model_dump() if isinstance(config, RunConfig) else dict(config)
    conv = tree.get("conv") or {}
    settings = {key: value for key, value in _scientific(RunConfig, tree).items() if key not in APART}
    return settings | {"conv": _whole(whole_plan({**defaults(conv), **conv}))}


def executes(key: str) -> bool:
    """Whether a setting says how a run is executed, and not what its result is; so do all of `trainer` and `logger`."""
    model: type[BaseModel] = RunConfig
    if key in ("trainer", "logger"):
        return True
    for part in key.split("."):
        field = model.model_fields.get(part)
        if field is None:
            return False
        extra, inner = field.json_schema_extra, field.annotation
        if isinstance(extra, dict) and extra.get(EXECUTION):
            return True
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return False
        model = inner
    return False


def differences(was: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two trees differ, as (key, first, second)."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in sorted(was.keys() | now.keys()):
            yield from differences(was.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif was != now:
        yield where, was, now


def alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists of overrides ask for the same result, however they are spelled; the precision does not count.

    Overrides that do not compose by now are like their own text only.
    """
    if settings(one) == settings(other):
        return True
    try:
        return _asked(tuple(one)) == _asked(tuple(other))
    except ConvReproError:
        return False


@cache
def _asked(overrides: tuple[str, ...]) -> Tree:
    from convrepro.config.compose import compose_config  # imports Hydra, which `convrepro show` rarely needs

    return {**scientific(compose_config(overrides)), "trainer": None}


def _scientific(model: type[BaseModel], tree: Mapping[str, Any]) -> Tree:
    found: Tree = {}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if (isinstance(extra, dict) and extra.get(EXECUTION)) or name not in tree:
            continue
        value, inner = tree[name], field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            settings = _scientific(inner, value)
            if settings or field.is_required():
                found[name] = settings
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            found[name] = _whole(value)
    return found


def _whole(value: Any) -> Any:
    """`value` with whole numbers as integers (2.0 and 2 are one setting), and an empty mapping for none."""
    if isinstance(value, Mapping):
        return {str(key): _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value
