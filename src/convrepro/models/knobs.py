"""The knobs of the operators as typed data: what a knob may be is what the operator's signature says."""

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, create_model
from torch import nn

from convrepro.config.strict import Record, validated
from convrepro.errors import ConvReproError
from convrepro.ops import knobs


class _Typed(Record):
    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())


def check_knobs(name: str, operator: type[nn.Module], given: Mapping[str, Any]) -> None:
    """Raises ConvReproError for a knob that the operator `name` lacks, and for a value of another type than its
    signature gives the knob; the message lists the operator's knobs. Bounds that depend on a layer are its own.
    """
    valid = ", ".join(knobs(operator)) or "none"
    if unknown := [knob for knob in given if knob not in knobs(operator)]:
        raise ConvReproError(f"operator {name} has no knob {unknown[0]!r}; valid: {valid}")
    try:
        validated(_typed(operator), {"conv": dict(given)})
    except ConvReproError as error:
        raise ConvReproError(f"{error}; knobs of {name}: {valid}") from None


def _typed(operator: type[nn.Module]) -> type[Record]:
    """The type of {"conv": knobs}, so that a message names a knob as a user types it. Untyped knobs take anything."""
    hints = get_type_hints(operator.__init__, include_extras=True)
    fields: dict[str, Any] = {
        knob: (hints.get(knob, Any), ... if default is inspect.Parameter.empty else default)
        for knob, default in knobs(operator).items()
    }
    conv = create_model(f"{operator.__name__}Knobs", __base__=_Typed, **fields)
    return create_model(operator.__name__, __base__=_Typed, conv=(conv, ...))
