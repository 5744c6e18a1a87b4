"""What stages 3 and 4 need beside torch, timm and Triton: packages that are carried to the machine, and a data set."""

import os
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("lightning", "torchmetrics", "torchvision", "hydra", "omegaconf", "antlr4", "fvcore", "iopath", "yacs")
PACKAGES += ("termcolor", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "yaml", "rich")
DATA = "cifar10_jpeg"
SAMPLE = "the bundled sample of Fashion-MNIST in the shape of CIFAR-10"


def missing_packages() -> str | None:
    """A sentence that names the packages that are not here; None where all are."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    return f"this stage needs packages that are not installed: {', '.join(missing)}" if missing else None


def data_root() -> Path:
    """The folder of the data sets, by the same rule as `data_root` of the configuration."""
    return Path(os.environ.get("CONVREPRO_DATA", "data")).expanduser()


def missing_data() -> str | None:
    """A sentence that names the first file of `DATA` that is not here; None where all are."""
    from convrepro.data.sets import SETS

    missing = SETS["cifar10-jpeg"].missing(data_root())
    if not missing:
        return None
    file = "/".join(missing[0].parts[-2:])
    return f"{file} is missing: name the folder that holds the CIFAR-10 of data={DATA} with CONVREPRO_DATA"


def data_words(sample: bool) -> list[str]:
    """The overrides for images: `DATA`, or with `sample` the bundled images in its shape."""
    return [f"data={DATA}", *(["budget.sample=true"] if sample else [])]
