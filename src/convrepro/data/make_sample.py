"""Writes the bundled sample: python -m convrepro.data.make_sample FOLDER

FOLDER holds the four .gz IDX files of Fashion-MNIST (MIT licence, Zalando SE 2017), such as those of Debian's package
dataset-fashion-mnist.
"""

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np

from convrepro.data.sample import SAMPLE
from convrepro.data.sets import balanced_subset, parse_idx

EXAMPLES = {"train": 6_000, "test": 1_000}
PREFIX = {"train": "train", "test": "t10k"}


def sample_arrays(folder: Path) -> dict[str, Any]:
    """Returns the arrays of the sample: {train,test}_images (N, 28, 28) and {train,test}_labels (N,), all uint8."""
    arrays = {}
    for split, examples in EXAMPLES.items():
        paths = [folder / f"{PREFIX[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        images, labels = (parse_idx(gzip.decompress(path.read_bytes()), path) for path in paths)
        chosen = balanced_subset(labels, examples, str(paths[0]))
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    return arrays


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    np.savez_compressed(SAMPLE, **sample_arrays(Path(sys.argv[1])))
