"""Reproduces the tables of papers on efficient convolutions, on any timm model.

`__all__` is the public interface. Each name is imported from its room when it is first used, so that `import convrepro`
loads neither torch nor anything else that is slow.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["OPERATORS", "ConvReproError", "build", "count", "register_operator", "replace_convs"]

if TYPE_CHECKING:
    from convrepro.complexity.counting import count
    from convrepro.errors import ConvReproError
    from convrepro.models.build import build
    from convrepro.models.registry import register_operator
    from convrepro.models.surgery import replace_convs
    from convrepro.ops import OPERATORS
else:
    _MODULES = {
        "ConvReproError": "convrepro.errors",
        "OPERATORS": "convrepro.ops",
        "build": "convrepro.models.build",
        "count": "convrepro.complexity.counting",
        "register_operator": "convrepro.models.registry",
        "replace_convs": "convrepro.models.surgery",
    }

    def __getattr__(name: str) -> object:
        """The public `name`, imported now; raises AttributeError with the valid names for any other."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; valid: {', '.join(__all__)}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
