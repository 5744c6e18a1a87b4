"""Image sets that are folders of image files, with one folder for each class, such as ImageNet."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from convrepro.data.loader import AUGMENT, Batch, Normalize, stream
from convrepro.errors import ConvReproError

FOLDERS = {"imagenet": "ImageNet"}  # set -> title
SPLIT_FOLDER = {"train": "train", "test": "val"}  # The labels of ImageNet's test set are not public.


@dataclass(frozen=True)
class FolderSplit:
    """The paths of N images and their labels (N,) int64."""

    paths: list[str]
    labels: Tensor

    def take(self, indices: Tensor) -> "FolderSplit":
        """Returns the examples at `indices`, in this order."""
        return FolderSplit([self.paths[i] for i in indices.tolist()], self.labels[indices])


def check_folder(root: Path, title: str, num_classes: int) -> None:
    """Raises ConvReproError unless root/train and root/val exist and have the same `num_classes` class folders."""
    classes = {}
    for name in SPLIT_FOLDER.values():
        folder = root / name
        if not folder.is_dir():
            raise ConvReproError(
                f"{folder} is missing: {title} cannot be downloaded, so put its class folders there, or set data.root "
                "to the folder that holds train and val"
            )
        classes[name] = {path.name for path in folder.iterdir() if path.is_dir()}
        if hidden := sorted(label for label in classes[name] if label.startswith(".")):
            raise ConvReproError(f"{folder / hidden[0]} is a hidden folder of some program and no class: remove it")
        if len(classes[name]) != num_classes:
            raise ConvReproError(
                f"{folder} has {len(classes[name])} class folders, but data.num_classes={num_classes}: set it to the "
                "number of folders, or restore the folders"
            )
    if differing := sorted(classes["train"] ^ classes["val"]):
        raise ConvReproError(f"{root} has the class folder {differing[0]!r} in only one of train and val: restore it")


def folder_digest(root: Path) -> str:
    """A digest of the names and sizes of all files in root/train and root/val."""
    digest = hashlib.sha256()
    for name in SPLIT_FOLDER.values():
        for line in sorted(_files(root / name, name)):
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path, name: str) -> Iterator[str]:
    """A line for each file below `folder`: its path, from `name` on, and its size."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(Path(entry.path), f"{name}/{entry.name}")
            else:
                yield f"{name}/{entry.name} {entry.stat().st_size}\n"


def load_folder(root: Path, split: str) -> FolderSplit:
    """Returns the "train" or "test" images in `root`. Raises ConvReproError if a class has no images."""
    try:
        folder = ImageFolder(root / SPLIT_FOLDER[split])
    except FileNotFoundError as error:
        raise ConvReproError(f"{error}: restore the images") from error
    if stray := next((path for path, _ in folder.samples if Path(path).name.startswith("._")), None):
        raise ConvReproError(f"{stray} is a file of macOS about another file, and no image: remove all files ._*")
    return FolderSplit([path for path, _ in folder.samples], torch.tensor(folder.targets))


def read_image(path: str | Path) -> Image.Image:
    """Returns the image of a file in RGB; grey values of 16 bits are scaled to 8.

    Raises ConvReproError, with the file, for whatever Pillow cannot read.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith("I"):
                grey = np.asarray(file, dtype=np.float64) * (255 / 65535)
                return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
            return file.convert("RGB")
    except Exception as error:  # Pillow raises many kinds: OSError, SyntaxError, ValueError, DecompressionBombError
        raise ConvReproError(f"{path} is no readable image ({error}): restore it") from error


class _Examples(Dataset):
    """Maps the index of an example to its uint8 image (3, S, S) and label.

    The random numbers of the transform depend only on (seed, epoch, example).
    """

    def __init__(self, split: FolderSplit, transform: Callable, seed: int, epoch: int) -> None:
        self.split, self.transform, self.seed, self.epoch = split, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.split.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = read_image(self.split.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(stream(self.seed, self.epoch, AUGMENT + index).get_state())
            return self.transform(image), int(self.split.labels[index])


class FolderSource:
    """Provides batches of a folder split, decoded by `num_workers` processes and normalised on the device.

    With num_workers=0 the images are decoded in the calling process. With `train`, an image is a random resized crop of
    (size, size), flipped with probability 1/2 if `flip` is True. Otherwise its shorter side is resized to size * 8/7
    (256 for 224), and the centre is cropped.
    """

    def __init__(
        self,
        split: FolderSplit,
        normalize: Normalize,
        *,
        train: bool,
        image_size: int,
        flip: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if train:
            steps: list[v2.Transform] = [v2.RandomResizedCrop(image_size, antialias=True)]
            steps += [v2.RandomHorizontalFlip()] * flip
        else:
            steps = [v2.Resize(image_size * 8 // 7, antialias=True), v2.CenterCrop(image_size)]
        self._transform = v2.Compose([*steps, v2.PILToTensor()])
        self._split = split
        self._normalize = normalize
        self._seed = seed
        self._num_workers = num_workers
        self._device = torch.device(device)

    def __len__(self) -> int:
        return len(self._split.paths)

    def batches(self, indices: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        loader = DataLoader(
            _Examples(self._split, self._transform, self._seed, epoch),
            batch_sampler=[index.tolist() for index in indices],
            num_workers=self._num_workers,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # Without it, the loader draws from the global random state.
            worker_init_fn=_ignore_sigterm,
        )
        for images, labels in _with_plain_errors(loader):
            images = images.to(self._device, non_blocking=True).permute(0, 2, 3, 1)
            yield self._normalize(images), labels.to(self._device)


def _ignore_sigterm(worker: int) -> None:
    """Makes a worker ignore SIGTERM.

    A cluster sends it to all processes of a job, and the training process decides when to end.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _with_plain_errors(loader: DataLoader) -> Iterator[list[Tensor]]:
    """Yields the batches of the loader; a ConvReproError of a worker is raised again without the worker's traceback."""
    try:
        yield from loader
    except ConvReproError as error:
        message = str(error).rpartition(f"{ConvReproError.__name__}: ")[2].strip()
        raise ConvReproError(message) from error
