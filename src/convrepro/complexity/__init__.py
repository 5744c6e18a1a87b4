"""The cost of a network, layer by layer and by counting rule.

The rules do not need torch, so that `count` and `cross_check`, which do, are imported when they are used.
"""

from typing import TYPE_CHECKING, Any

from convrepro.complexity.rules import MULTIPLYING, RULES, Count, LayerCount, Rule

if TYPE_CHECKING:
    from convrepro.complexity.counting import count, cross_check

__all__ = ["MULTIPLYING", "RULES", "Count", "LayerCount", "Rule", "count", "cross_check"]


def __getattr__(name: str) -> Any:
    if name in ("count", "cross_check"):
        from convrepro.complexity import counting

        return getattr(counting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
