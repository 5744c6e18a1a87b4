"""The image sets that fit in memory: the location of their files, checks, and conversion to tensors."""

import hashlib
import io
import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from convrepro.errors import ConvReproError

Reader = Callable[[Iterable[tuple[Path, bytes]]], tuple[np.ndarray, np.ndarray]]

_RECONSTRUCT = np.empty(0).__reduce__()[0]
#: The names that a pickled array asks for. The module of the first was renamed in numpy 2.
_ARRAY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class Split(NamedTuple):
    """Images (N, H, W, C) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> "Split":
        """Returns the examples at `indices`, in this order."""
        return Split(self.images[indices], self.labels[indices])


def balanced_subset(labels: np.ndarray, examples: int, what: str) -> np.ndarray:
    """Returns the indices of `examples` examples, the first of a fixed order that cycles through the classes (N,).

    The order is the same for every run and seed. A smaller subset is the beginning of a larger one, and the class
    counts differ by at most one until a class has no more examples. Raises ConvReproError if there are fewer examples;
    the message calls the set `what`.
    """
    if examples > len(labels):
        raise ConvReproError(f"{examples} examples are asked for, but {what} has {len(labels)}")
    order = np.random.RandomState(0).permutation(len(labels))  # numpy guarantees the stream of RandomState.
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_class[np.argsort(turn, kind="stable")][:examples]


def parse_idx(raw: bytes, path: Path) -> np.ndarray:
    """Returns the uint8 array in an IDX file.

    The file has two zero bytes, the type 8, the number of dimensions, the big-endian sizes, and the values. Raises
    ConvReproError, which names `path`, for another header and for a length that does not fit the header.
    """
    dimensions = raw[3] if len(raw) > 3 and raw[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if not shape or len(raw) != start + math.prod(shape):
        raise ConvReproError(f"{path} is no whole IDX file of uint8 values ({len(raw)} bytes): restore or remove it")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and numpy arrays, and rejects every other name, so that a file cannot execute code."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither a value nor an array")
        return _ARRAY_GLOBALS[module, name]


def parse_cifar(raw: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (N, 32, 32, 3) and labels (N,) of a CIFAR python batch, without executing code from the file.

    Raises ConvReproError, which names `path`, if the file is truncated, is not such a batch, or contains other objects
    than plain values and arrays.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
        images = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(batch["labels"] if "labels" in batch else batch["fine_labels"])
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
    except Exception as error:  # A broken pickle can raise anything.
        reason = f"{type(error).__name__}: {error}"
        raise ConvReproError(f"{path} is no readable CIFAR batch ({reason}): restore or remove it") from error
    return images, labels


def _read_idx(files: Iterable[tuple[Path, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (parse_idx(raw, path) for path, raw in files)
    return images[..., None], labels


def _read_cifar(files: Iterable[tuple[Path, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(parse_cifar(raw, path) for path, raw in files), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@dataclass(frozen=True)
class ImageSet:
    """An image set as files in the data folder, with the layout of torchvision."""

    title: str
    folder: str
    shape: tuple[int, int, int]  # height, width, channels
    num_classes: int
    counts: Mapping[str, int]  # split -> number of examples
    files: Mapping[str, Mapping[str, str]]  # split -> file name -> md5
    read: Reader
    source: Callable[..., object] | None  # the class that downloads it, or None if it cannot be downloaded
    stand_in: str = ""  # the override that selects a known copy that is not the original

    def missing(self, root: Path) -> list[Path]:
        """Returns the files that are missing in `root`."""
        paths = [root / self.folder / name for names in self.files.values() for name in names]
        return [path for path in paths if not path.is_file()]

    def check(self, root: Path, download: bool) -> None:
        """Raises ConvReproError if a file is missing and will not be downloaded."""
        missing = self.missing(root)
        if missing and not (download and self.source):
            raise self._is_missing(missing[0])

    def _is_missing(self, path: Path) -> ConvReproError:
        download = ", or set data.download=true where there is a network" if self.source else ""
        return ConvReproError(
            f"{path} is missing: put {self.title} there, name the folder that holds {self.folder} with data.root or "
            f"CONVREPRO_DATA{download}"
        )

    def download(self, root: Path) -> None:
        """Downloads the files that are missing, and does not change those that exist.

        A file appears complete or not at all, so that jobs can download the same set at the same time. Raises
        ConvReproError if a file cannot be downloaded or stored.
        """
        missing = self.missing(root)
        if not missing:
            return
        if self.source is None:
            raise self._is_missing(missing[0])
        try:
            home = root / self.folder
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=home) as fresh:
                self.source(fresh, download=True)
                for path in missing:
                    os.replace(Path(fresh) / self.folder / path.name, path)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConvReproError(
                f"{self.title} cannot be downloaded to {root} ({reason}): copy {self.folder} there by hand, or "
                "name the folder that holds it with data.root or CONVREPRO_DATA"
            ) from error

    def digest(self, root: Path) -> str | None:
        """A digest of the content of all files, or None where one is missing."""
        if self.missing(root):
            return None
        digest = hashlib.sha256()
        for names in self.files.values():
            for name in names:
                digest.update((root / self.folder / name).read_bytes())
        return digest.hexdigest()

    def load(self, root: Path, split: str, verify: bool) -> Split:
        """Returns the "train" or "test" split. `verify` rejects every file whose md5 is not that of the original.

        Raises ConvReproError for a file that is missing, broken or not the original, and for wrong counts, shapes or
        labels.
        """
        images, labels = self.read(self._contents(root, split, verify))
        where = f"the {split} files in {root / self.folder}"
        found, expected = (images.shape, labels.shape), ((self.counts[split], *self.shape), (self.counts[split],))
        if found != expected or images.dtype != np.uint8:
            raise ConvReproError(
                f"{where} hold images and labels of shape {found} ({images.dtype}), but {self.title} has {expected} "
                "(uint8): restore them"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= self.num_classes:
            raise ConvReproError(
                f"{where} have labels that are not integers from 0 to {self.num_classes - 1}: restore them"
            )
        return Split(torch.tensor(images), torch.tensor(labels, dtype=torch.int64))

    def _contents(self, root: Path, split: str, verify: bool) -> Iterable[tuple[Path, bytes]]:
        for name, md5 in self.files[split].items():
            path = root / self.folder / name
            try:
                raw = path.read_bytes()
            except FileNotFoundError as error:
                raise self._is_missing(path) from error
            except OSError as error:
                raise ConvReproError(f"{path} cannot be read ({error.strerror}): check the file") from error
            found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
            if verify and found != md5:
                raise ConvReproError(
                    f"{path} is not the original {self.title} file (md5 {found}, expected {md5}): restore or remove "
                    f"it, or say that it is a copy with {self.stand_in}data.verify=false"
                )
            yield path, raw


_MNIST = ImageSet(
    title="MNIST",
    folder="MNIST/raw",
    shape=(28, 28, 1),
    num_classes=10,
    counts={"train": 60_000, "test": 10_000},
    files={
        "train": {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        },
        "test": {
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    },
    read=_read_idx,
    source=datasets.MNIST,
)
_FASHION_MNIST = replace(
    _MNIST,
    title="Fashion-MNIST",
    folder="FashionMNIST/raw",
    files={
        "train": {
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        },
        "test": {
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
    },
    source=datasets.FashionMNIST,
)
_CIFAR10 = ImageSet(
    title="CIFAR-10",
    folder=datasets.CIFAR10.base_folder,
    shape=(32, 32, 3),
    num_classes=10,
    counts={"train": 50_000, "test": 10_000},
    files={"train": dict(datasets.CIFAR10.train_list), "test": dict(datasets.CIFAR10.test_list)},
    read=_read_cifar,
    source=datasets.CIFAR10,
    stand_in="data=cifar10_jpeg (images that were JPEG once) or ",
)
_CIFAR100 = replace(
    _CIFAR10,
    title="CIFAR-100",
    folder=datasets.CIFAR100.base_folder,
    num_classes=100,
    files={"train": dict(datasets.CIFAR100.train_list), "test": dict(datasets.CIFAR100.test_list)},
    source=datasets.CIFAR100,
    stand_in="",
)

SETS: dict[str, ImageSet] = {
    "mnist": _MNIST,
    "fashion-mnist": _FASHION_MNIST,
    "cifar10": _CIFAR10,
    "cifar10-jpeg": replace(_CIFAR10, title="CIFAR-10 as JPEG", source=None),
    "cifar100": _CIFAR100,
}
