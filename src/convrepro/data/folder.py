"""Sets that are folders of image files, one folder for each class, such as ImageNet."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from convrepro.data.loader import AUGMENT, Batch, Normalize, stream
from convrepro.errors import ConvReproError

FOLDERS = {"imagenet": "ImageNet"}  # set -> title
SPLIT_FOLDER = {"train": "train", "test": "val"}  # ImageNet's test labels are not public


@dataclass(frozen=True)
class FolderSplit:
    """The paths of N images and their labels (N,) int64."""

    paths: list[str]
    labels: Tensor

    def take(self, indices: Tensor) -> "FolderSplit":
        """The examples at `indices`, in that order."""
        return FolderSplit([self.paths[i] for i in indices.tolist()], self.labels[indices])


def check_folder(root: Path, title: str, num_classes: int) -> None:
    """Raises ConvReproError where root/train or root/val is missing, or lacks the same `num_classes` class folders."""
    classes = {}
    for name in SPLIT_FOLDER.values():
        folder = root / name
        if not folder.is_dir():
            raise ConvReproError(
                f"{folder} is missing: {title} is not downloaded, so put its class folders there or name the folder "
                "that holds train and val with data.root"
            )
        classes[name] = {path.name for path in folder.iterdir() if path.is_dir()}
        if len(classes[name]) != num_classes:
            raise ConvReproError(
                f"{folder} has {len(classes[name])} class folders, data.num_classes={num_classes}: they must agree"
            )
    if differing := sorted(classes["train"] ^ classes["val"]):
        raise ConvReproError(f"{root} has the class folder {differing[0]!r} in only one of train and val: restore it")


def folder_digest(root: Path) -> str:
    """A digest of the names and sizes of all files in root/train and root/val, for 1.3 million of them in seconds."""
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
    """The "train" or "test" images below `root`; raises ConvReproError where a class has none."""
    try:
        folder = ImageFolder(root / SPLIT_FOLDER[split])
    except FileNotFoundError as error:
        raise ConvReproError(f"{error}: restore the images") from error
    return FolderSplit([path for path, _ in folder.samples], torch.tensor(folder.targets))


class _Examples(Dataset):
    """Example -> (uint8 image (3, S, S), label); what is random depends on (seed, epoch, example) alone."""

    def __init__(self, split: FolderSplit, transform: Callable, seed: int, epoch: int) -> None:
        self.split, self.transform, self.seed, self.epoch = split, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.split.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.split.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError) as error:  # Pillow raises the second for a broken PNG
            raise ConvReproError(f"{path} is no readable image ({error}): restore it") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(stream(self.seed, self.epoch, AUGMENT + index).get_state())
            return self.transform(image), int(self.split.labels[index])


class FolderSource:
    """Batches of a folder split, decoded by `num_workers` processes (0: in this one) and normalised on the device.

    train: a random resized crop to (size, size), and a flip with probability 1/2 if `flip`; else: the shorter side
    resized to size * 8/7 (256 for 224), then the centre.
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
            steps = [v2.RandomResizedCrop(image_size, antialias=True)] + [v2.RandomHorizontalFlip()] * flip
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
            generator=torch.Generator(),  # it would draw from the global one
            worker_init_fn=_outlast,
        )
        for images, labels in _sentences(loader):
            images = images.to(self._device, non_blocking=True).permute(0, 2, 3, 1)
            yield self._normalize(images), labels.to(self._device)


def _outlast(worker: int) -> None:
    """Have a worker go on where a cluster sends SIGTERM to all processes: the one that trains decides when to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _sentences(loader: DataLoader) -> Iterator[list[Tensor]]:
    """The loader's batches; a worker's ConvReproError without the traceback that it comes back with."""
    try:
        yield from loader
    except ConvReproError as error:
        sentence = str(error).rpartition(f"{ConvReproError.__name__}: ")[2].strip()
        raise ConvReproError(sentence) from error
