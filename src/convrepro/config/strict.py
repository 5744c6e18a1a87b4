"""Data from outside as typed objects: one adapter that names file, key, value and rule where something does not fit."""

import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json
from typing_extensions import is_typeddict

from convrepro.errors import ConvReproError, SetAside

T = TypeVar("T")
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false|null|", re.IGNORECASE)
#: Characters of a value that a message repeats.
SHOWN = 80
#: What a value must be, by pydantic's name for the failure; `{}` are words of its context.
RULES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "is_instance_of": "a list",
    "sequence_str": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "null",
    "finite_number": "finite",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "literal_error": "{expected}",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_pattern_mismatch": "a text of the form {pattern}",
}
#: Configuration of a TypedDict that says what must be in a record on disk: other keys, such as those that a later
#: version adds, are kept.
ON_DISK = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Rule(ValueError):
    """A rule between several values that is broken: the key, its value, and the rule as the end of a sentence."""

    def __init__(self, key: str, value: object, rule: str) -> None:
        super().__init__(rule)
        self.key, self.value = key, value


class Record(BaseModel):
    """Base of typed data: unknown keys are errors, numbers are not read from texts, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NotJson(ConvReproError):
    """A text that is no JSON, as a damaged disk or an interrupted copy leaves it."""


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def read_file(kind: type[T], path: Path) -> T:
    """A record of the type `kind` (a Record, or a TypedDict) from the JSON in `path`.

    Raises NotJson where the file is not JSON, and ConvReproError with file, key, value and rule for anything else that
    is wrong with it: it is missing, a folder or a pipe, or holds something else than a record of this kind.
    """
    return read_json(kind, read_bytes(path), str(path))


def read_files(kind: type[T], paths: Iterable[Path]) -> Iterator[tuple[Path, T]]:
    """The records in `paths`; one that cannot be read is set aside with a warning."""
    for path in paths:
        try:
            yield path, read_file(kind, path)
        except ConvReproError as error:
            set_aside(error)


def set_aside(error: ConvReproError) -> None:
    """Warns that the file which `error` names is left out of what is shown."""
    warnings.warn(f"{error}; this file is set aside", SetAside, stacklevel=3)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises ConvReproError where there is no regular file that can be read."""
    try:
        if path.exists() and not path.is_file():
            raise ConvReproError(f"{path} must be a file; it is a folder or a device")
        return path.read_bytes()
    except OSError as error:
        raise ConvReproError(f"{path} cannot be read ({error.strerror})") from error


def read_json(kind: type[T], text: str | bytes, place: str) -> T:
    """A record from JSON. Raises NotJson, or ConvReproError with place, key, value and rule of the first mistake."""
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise NotJson(f"{place}: this is not JSON ({first['ctx']['error']})") from None
        raise ConvReproError(sentence(error, from_json(text), kind, place)) from None


def validated(kind: type[T], content: object, place: str = "") -> T:
    """`content` as the type `kind`. Raises ConvReproError with place, key, value and rule of the first mistake."""
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        raise ConvReproError(sentence(error, content, kind, place)) from None


def sentence(error: ValidationError, content: object, kind: object, place: str = "") -> str:
    """The first mistake of a validation as one sentence."""
    details = error.errors(include_url=False)
    first = details[0]
    key = _key(first, content)
    same = [detail for detail in details if _key(detail, content) == key]
    if isinstance(broken := (first.get("ctx") or {}).get("error"), Rule):
        text = f"{broken.key}={text_of(broken.value)} {broken}"
    elif first["type"] == "missing":
        text = f"`{_path(first['loc'])}` is missing"
    elif first["type"] == "extra_forbidden":
        text = f"there is no key `{_path(first['loc'])}`; valid: {', '.join(_fields(kind, key[:-1]))}"
    else:
        alternatives = dict.fromkeys(rule for rule in map(_rule, same) if rule)
        rule = " or ".join([*alternatives, *(["null"] if _nullable(kind, key) else [])])
        if first["type"] == "string_type" and isinstance(first["input"], int | float):
            rule += f", which is in quotes: {_path(key)}=\"'{first['input']}'\""
        given = f"{_path(key)}={text_of(first['input'])}" if key else text_of(first["input"])
        text = f"{given} {rule if first['type'] == 'value_error' else f'must be {rule}'}"
    return f"{place}: {text}" if place else text


def text_of(value: object) -> str:
    """A value as it is written in YAML, cut where it is long, control characters escaped."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = value if isinstance(value, str) and not _NUMBER.fullmatch(value) else repr(value)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _rule(detail: ErrorDetails) -> str:
    context = detail.get("ctx") or {}
    if detail["type"] == "value_error":
        return str(context["error"])
    rule = RULES.get(detail["type"])
    return rule.format(**context) if rule else detail["msg"]


def _key(detail: ErrorDetails, content: object) -> tuple[str | int, ...]:
    """Where the mistake is: the error's location without the names that pydantic gives to the members of a union."""
    key: list[str | int] = []
    for part in detail["loc"]:
        if isinstance(content, Mapping) and part in content:
            content = content[part]
        elif isinstance(content, Sequence) and not isinstance(content, str) and isinstance(part, int):
            content = content[part] if part < len(content) else None
        else:
            continue
        key.append(part)
    return tuple(key)


def _path(key: Sequence[str | int]) -> str:
    path = ""
    for part in key:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return text_of(path)


def _fields(kind: object, key: Sequence[str | int]) -> list[str]:
    """The keys that the type at `key` has."""
    model = _type_at(kind, key)
    if is_typeddict(model):
        return list(_hints(model))
    fields = getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {})
    return [getattr(field, "alias", None) or name for name, field in fields.items()]


def _nullable(kind: object, key: Sequence[str | int]) -> bool:
    return bool(key) and types.NoneType in get_args(_type_at(kind, key, options=True))


def _type_at(kind: object, key: Sequence[str | int], *, options: bool = False) -> Any:
    """The type of the value at `key` below the type `kind`; of a union its model, or with `options` the union."""
    for number, part in enumerate(key):
        kind = _model(kind)
        fields = getattr(kind, "model_fields", {})
        if part in fields:
            kind = fields[part].annotation
        elif is_typeddict(kind) and part in _hints(kind):
            kind = _hints(kind)[str(part)]
        elif get_origin(kind) in (list, tuple, dict, Mapping) and get_args(kind):
            kind = get_args(kind)[-1 if get_origin(kind) in (dict, Mapping) else 0]
        else:
            return None
        if number == len(key) - 1 and options:
            return kind
    return _model(kind)


def _model(kind: Any) -> Any:
    """The first model of a union, else the type itself."""
    if get_origin(kind) in (Union, types.UnionType):
        models = [option for option in get_args(kind) if _is_model(option)]
        return models[0] if models else kind
    return kind


def _is_model(kind: Any) -> bool:
    return is_typeddict(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel))


_hints = cache(get_type_hints)
