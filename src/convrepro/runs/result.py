"""The record of a run: `result.json` in its folder, written whole or not at all."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.strict import ON_DISK, read_file
from convrepro.errors import ConvReproError

SCHEMA = 1
FILE = "result.json"
LAST = "last.ckpt"

#: An exact number as text, such as "7000000" or "10000000/3".
Exact = Annotated[str, Field(pattern=r"^-?\d{1,40}(/[1-9]\d{0,39})?$")]

#: An override of Hydra, such as "conv.p=4" or "~recipe.schedule".
Override = Annotated[str, Field(pattern=r"^\s*([+]{0,2}[\w./@:-]+=|~[\w./@:-]+)")]


@with_config(ON_DISK)
class Measures(TypedDict):
    """What a run measured in one epoch: accuracies in percent, and a loss, which is None where it was not finite."""

    top1: Annotated[float, Field(ge=0, le=100)]
    top5: NotRequired[Annotated[float, Field(ge=0, le=100)] | None]
    loss: NotRequired[float | None]
    epoch: NotRequired[int | None]


@with_config(ON_DISK)
class Metrics(TypedDict):
    """The measures of the last epoch, and of the one with the best top-1."""

    last: Measures
    best: Measures


@with_config(ON_DISK)
class Environment(TypedDict):
    """Where a run was executed, and by which code."""

    commit: NotRequired[str | None]
    dirty: NotRequired[bool | None]
    versions: NotRequired[dict[str, str | None] | None]
    plugins: NotRequired[dict[str, dict[str, str | None]] | None]
    device: NotRequired[str | None]
    threads: NotRequired[int | None]
    precision: NotRequired[str | None]


@with_config(ON_DISK)
class Time(TypedDict):
    """When a run started, its seconds, and the images per second in training."""

    started: NotRequired[str | None]
    seconds: NotRequired[float | None]
    images_per_second: NotRequired[float | None]


@with_config(ON_DISK)
class DataConfig(TypedDict):
    """The data set of a configuration on record."""

    name: NotRequired[str | None]
    root: NotRequired[str | None]


@with_config(ON_DISK)
class Config(TypedDict):
    """A resolved configuration on record. Its keys are those of its version; `runs.protocol` compares them."""

    data: NotRequired[DataConfig | None]
    conv: NotRequired[dict[str, Any] | None]
    weights: NotRequired[str | None]


@with_config(ON_DISK)
class Content(TypedDict):
    """`Protocol.record`: digests of the protocol, of the images, and of the starting weights."""

    digest: NotRequired[str | None]
    data: NotRequired[str | None]
    weights: NotRequired[str | None]


#: An epoch of a run; its other keys are measures by name.
Epoch = TypedDict("Epoch", {"epoch": int, "val/top1": NotRequired[float | None]})
with_config(ON_DISK)(Epoch)


@with_config(ON_DISK)
class Result(TypedDict):
    """A run's `result.json`. What is not required is missing in results of older versions."""

    schema: Literal[1]
    status: str
    table: str | None
    row: str | None
    seed: int
    budget: str
    overrides: list[Override]
    config: Config
    protocol: NotRequired[Content | None]
    metrics: Metrics
    static: dict[str, int]
    counts: NotRequired[dict[str, Exact] | None]
    history: list[Epoch]
    environment: NotRequired[Environment | None]
    time: NotRequired[Time | None]


def finite(value: Any) -> Any:
    """`value` with None for each number that JSON does not have: a loss may be infinite or not a number."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(folder: Path) -> Result | None:
    """The result in `folder`, or None where the run has not finished.

    Raises NotJson and ConvReproError as `read_file` does: the file names what is wrong, and nothing reads on.
    """
    path = folder / FILE
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise ConvReproError(f"{path} cannot be read ({error.strerror})") from error
    return read_file(Result, path)
