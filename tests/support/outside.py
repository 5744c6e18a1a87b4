"""The example of an outside package, `outside_package/`, for tests of this process and for commands."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convrepro.config import plugins
from convrepro.ops import LINEAR_OPERATORS, OPERATORS

PACKAGE = Path(__file__).parent / "outside_package"
PLUGIN = ("--plugin", "outside_ops.operators")


@contextmanager
def own_registry() -> Iterator[None]:
    """Within the block operators may be registered, of which nothing remains for other tests of this process."""
    registries: tuple[dict, ...] = (OPERATORS, LINEAR_OPERATORS, plugins._offered)
    before = [dict(registry) for registry in registries]
    sys.path.append(str(PACKAGE))
    try:
        yield
    finally:
        sys.path.remove(str(PACKAGE))
        for registry, content in zip(registries, before, strict=True):
            registry.clear()
            registry.update(content)
