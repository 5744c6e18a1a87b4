"""The last launches of HetConv's kernels, to name the one that failed."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from convrepro.ops import hetconv_launch


def described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype)[6:]}{tuple(value.shape)}"
    return str(value)


@contextlib.contextmanager
def watched(most: int = 6) -> Iterator[collections.deque[str]]:
    """Within the context, the last `most` launches: kernel, grid and arguments."""
    launches: collections.deque[str] = collections.deque(maxlen=most)
    kernels = hetconv_launch._kernels

    class Watched:
        def __getattr__(self, name: str) -> Any:
            class Grid:
                def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                    def launch(*words: object, **named: object) -> None:
                        shown = [described(word) for word in words] + [f"{k}={v}" for k, v in named.items()]
                        launches.append(f"{name}[{grid}]({', '.join(shown)})")
                        getattr(kernels(), name)[grid](*words, **named)

                    return launch

            return Grid()

    hetconv_launch._kernels = Watched
    try:
        yield launches
    finally:
        hetconv_launch._kernels = kernels
