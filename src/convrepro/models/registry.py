"""Operators of users: `register_operator` checks what the contract of an operator asks, and adds it to `OPERATORS`."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from torch import nn

from convrepro.config.plugins import offer
from convrepro.errors import ConvReproError
from convrepro.ops import LINEAR_OPERATORS, OPERATORS, ConvOperator, LinearOperator, knobs

T = TypeVar("T", bound=type[ConvOperator])


@overload
def register_operator(name: str, operator: T, *, linear: type[LinearOperator] | None = None) -> T: ...


@overload
def register_operator(name: str, *, linear: type[LinearOperator] | None = None) -> Callable[[T], T]: ...


def register_operator(name: str, operator: T | None = None, *, linear: type[LinearOperator] | None = None) -> Any:
    """Registers an operator under `name`, so that `conv=<name>` and `replace_convs` find it; returns the class.

    Without `operator` it returns a decorator: `@register_operator("fixed")` above the class. `linear` is the drop-in
    for `nn.Linear` with the same knobs, if the operator has one. `conv=<name>` takes the knobs with the defaults of
    the signature, and the rule that the class names as `where`, unless a folder given by `--config-dir` has
    `conv/<name>.yaml`. To register the same class again has no effect.

    Raises ConvReproError for a name that is not an identifier or is taken, and for a class that lacks a member of the
    contract (`check_contract`).
    """
    if operator is None:
        return lambda cls: register_operator(name, cls, linear=linear)
    if not (name.isidentifier() and name.isascii()):
        raise ConvReproError(f"operator name {name!r} must be an identifier: letters, digits and _, no digit first")
    for registry, cls in ((OPERATORS, operator), (LINEAR_OPERATORS, linear)):
        taken = registry.get(name)
        if cls is not None and taken is not None and _origin(taken) != _origin(cls):
            raise ConvReproError(f"operator name {name!r} is taken by {_origin(taken)}; choose another")
    check_contract(operator)
    if linear is not None:
        _check_members(linear, LinearOperator, nn.Linear)
        LINEAR_OPERATORS[name] = linear
    OPERATORS[name] = operator
    about = (inspect.getdoc(operator) or "").partition("\n")[0]
    content = {"name": name, "where": operator.where, **_plain(knobs(operator))}
    offer(name, about, content, operator.__module__)
    return operator


def check_contract(operator: type[nn.Module]) -> None:
    """Raises ConvReproError, with the name of the class and of the member, where an operator lacks what the contract
    asks: the base class, its abstract methods, the parameters of `nn.Conv2d` by their names and in their order, and
    knobs whose defaults can be written in YAML.
    """
    _check_members(operator, ConvOperator, nn.Conv2d)
    for knob, default in knobs(operator).items():
        if not _is_plain(default):
            what = "no default" if default is inspect.Parameter.empty else f"the default {default!r}"
            raise ConvReproError(
                f"{operator.__name__}: knob {knob!r} has {what}; it needs one that YAML can hold: a number, text, "
                "true, false, null, or a list or mapping of them"
            )


def _check_members(operator: type[nn.Module], base: type, layer: type[nn.Module]) -> None:
    if not (isinstance(operator, type) and issubclass(operator, base)):
        name = getattr(operator, "__name__", repr(operator))
        raise ConvReproError(f"{name} must be a class derived from convrepro.ops.{base.__name__}")
    if missing := sorted(inspect.getattr_static(operator, "__abstractmethods__", ())):
        raise ConvReproError(f"{operator.__name__} lacks the method {missing[0]!r}; {base.__name__} explains it")
    given, wanted = _layer_parameters(operator), _layer_parameters(layer)
    for position, name in enumerate(wanted):
        if name not in given:
            raise ConvReproError(
                f"{operator.__name__}.__init__ lacks the parameter {name!r}; it takes those of nn.{layer.__name__}, "
                "in their order, and knobs as keyword-only parameters"
            )
        if given[position] != name:
            raise ConvReproError(
                f"{operator.__name__}.__init__ has the parameter {given[position]!r} where nn.{layer.__name__} has "
                f"{name!r}; knobs must be keyword-only"
            )
    if operator.forward is nn.Module.forward:
        raise ConvReproError(f"{operator.__name__} lacks the method 'forward'")


def _layer_parameters(cls: type[nn.Module]) -> list[str]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_plain(value: object) -> bool:
    match value:
        case None | bool() | int() | float() | str():
            return True
        case list() | tuple():
            return all(map(_is_plain, value))
        case dict():
            return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return False


def _plain(value: Any) -> Any:
    """`value` with lists for tuples, as YAML holds it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
