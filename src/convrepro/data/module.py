"""The LightningDataModule for all image sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch

from convrepro.data import sample as bundled
from convrepro.data.folder import FOLDERS, FolderSource, FolderSplit, check_folder, folder_digest, load_folder
from convrepro.data.loader import BatchLoader, EvalLoader, Normalize, Source
from convrepro.data.memory import MemorySource
from convrepro.data.sets import SETS, Split, balanced_subset
from convrepro.errors import ConvReproError

SAMPLE = "fashion-sample"
NAMES = (*SETS, *FOLDERS, SAMPLE)
AUGMENT_KEYS = {"flip", "crop_padding"}
AnySplit = Split | FolderSplit


class ImageData(L.LightningDataModule):
    """The training and test batches of an image set: images (B, C, H, W) float32 on the training device, labels (B,).

    The validation set is the test set, because papers report test accuracy; with `holdout` it is a part of the training
    set, and the test set is not read. No data is read before `setup`.

    Args:
        name: one of `NAMES`.
        root: the folder that holds the set.
        download: whether to download the set to `root` if it is missing.
        verify: whether to reject files whose md5 is not that of the original. False accepts any copy with this layout.
        channels, image_size, num_classes: the values that the network expects, which must be those of the set.
        mean, std: one value per channel, on the scale 0 to 1; used if `normalize` is True.
        batch_size: the batch size of each device.
        augment: {flip: bool, crop_padding: pixels}, for training only.
        train_examples, test_examples: the size of a fixed, class-balanced subset, which is the same for every seed.
        holdout: the share of the training images that is held out, class by class, for validation; None for none.
        sample: whether to use the bundled Fashion-MNIST sample, in the shape of the set, instead of the set.
        num_workers: the number of processes that decode image files; sets in memory do not need any.

    Raises ConvReproError for a value outside its range or in conflict with the set.
    """

    name: str

    def __init__(
        self,
        *,
        name: str,
        root: str | Path,
        download: bool,
        verify: bool,
        channels: int,
        image_size: int,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        eval_batch_size: int = 1000,
        augment: Mapping[str, int],
        normalize: bool,
        seed: int,
        train_examples: int | None = None,
        test_examples: int | None = None,
        sample: bool = False,
        holdout: float | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if name not in NAMES:
            raise ConvReproError(f"data.name={name!r} is unknown; valid: {', '.join(NAMES)}")
        if set(augment) != AUGMENT_KEYS:
            raise ConvReproError(f"augment={dict(augment)} must have exactly the keys {sorted(AUGMENT_KEYS)}")
        at_least: dict[int, dict[str, int | None]] = {
            1: {
                "batch_size": batch_size,
                "eval_batch_size": eval_batch_size,
                "channels": channels,
                "image_size": image_size,
                "train_examples": train_examples,
                "test_examples": test_examples,
            },
            0: {"seed": seed, "num_workers": num_workers, "crop_padding": augment["crop_padding"]},
        }
        for least, values in at_least.items():
            for argument, value in values.items():
                if value is not None and value < least:
                    raise ConvReproError(f"{argument}={value} must be at least {least}")
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise ConvReproError(
                f"data.mean={list(mean)} and data.std={list(std)} must have one value for each of the {channels} "
                "channels, and std must be positive"
            )
        self.name = name
        self.root = Path(root).expanduser()
        self.download, self.verify = download, verify
        self.channels, self.image_size, self.num_classes = channels, image_size, num_classes
        self.mean, self.std = tuple(mean), tuple(std)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.flip, self.crop_padding = bool(augment["flip"]), augment["crop_padding"]
        self.normalize = normalize
        self.seed = seed
        self.examples = {"train": train_examples, "test": test_examples}
        self.sample = sample or name == SAMPLE
        self.holdout = holdout
        self.num_workers = num_workers
        self._splits: dict[str, AnySplit] = {}
        self._check_shape()

    def _check_shape(self) -> None:
        """Raises ConvReproError if the set does not have the expected shape."""
        if self.sample:
            agreed = self.num_classes >= bundled.NUM_CLASSES
            rule = f"the bundled sample needs data.num_classes >= {bundled.NUM_CLASSES}"
        elif self.name in FOLDERS:
            agreed = self.channels == 3 and not self.crop_padding
            rule = f"{FOLDERS[self.name]} has 3 channels and random resized crops, so crop_padding is 0"
        else:
            known = SETS[self.name]
            agreed = known.shape == (self.image_size, self.image_size, self.channels)
            agreed &= known.num_classes == self.num_classes
            rule = f"{known.title} has (height, width, channels)={known.shape} and {known.num_classes} classes"
        if not agreed:
            given = f"image_size={self.image_size}, channels={self.channels}, num_classes={self.num_classes}"
            raise ConvReproError(f"data has {given}, crop_padding={self.crop_padding}, but {rule}")

    def check(self) -> None:
        """Raises ConvReproError if the set is missing and will not be downloaded. It reads no image."""
        if self.sample:
            return
        if self.name in FOLDERS:
            check_folder(self.root, FOLDERS[self.name], self.num_classes)
        else:
            SETS[self.name].check(self.root, self.download)

    def content(self) -> str | None:
        """A digest of the images' content: of folders the names and sizes of their files, of files that no checksum
        fixes their bytes; None for sets that name and checksum fix, and for the bundled sample.
        """
        if self.sample:
            return None
        if self.name in FOLDERS:
            return folder_digest(self.root)
        return None if self.verify else SETS[self.name].digest(self.root)

    def train_examples(self) -> int:
        """Returns the number of training images, without those held out. It lists the files of folders, and reads no
        image.

        Raises ConvReproError if a class folder has no images.
        """
        if (examples := self.examples["train"]) is not None:
            return examples
        if self.name in FOLDERS and not self.sample:
            self.setup()
            return len(self._splits["train"].labels)
        whole = bundled.TRAIN_EXAMPLES if self.sample else SETS[self.name].counts["train"]
        return whole - self._held_out(whole)

    def prepare_data(self) -> None:
        """Downloads the missing files if `download` is True. Lightning calls this in one process of each node."""
        if self.download and not self.sample and self.name in SETS:
            SETS[self.name].download(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Reads both splits, or what is held out in the place of the test split. Further calls do nothing.

        Raises ConvReproError if fewer images are held out than there are classes.
        """
        if not self._splits:
            whole = {split: self._load(split) for split in (("train",) if self.holdout else ("train", "test"))}
            if self.holdout:
                whole = self._divided(whole["train"])
            self._splits = {split: self._finished(data, split) for split, data in whole.items()}

    def _load(self, split: str) -> AnySplit:
        if self.sample:
            return bundled.load_sample(split)
        if self.name in FOLDERS:
            self.check()
            return load_folder(self.root, split)
        return SETS[self.name].load(self.root, split, self.verify)

    def _held_out(self, examples: int) -> int:
        return round(self.holdout * examples) if self.holdout else 0

    def _divided(self, data: AnySplit) -> dict[str, AnySplit]:
        """Returns the training images without those held out, in their order, and those held out as the test images."""
        labels = data.labels.numpy()
        number, classes = self._held_out(len(labels)), len(np.unique(labels))
        if not classes <= number <= len(labels) - classes:
            raise ConvReproError(
                f"budget.holdout={self.holdout} holds out {number} of {len(labels)} training images; one of each of "
                f"the {classes} classes must be held out, and one left"
            )
        held = balanced_subset(labels, number, f"the train split of {self._title}")
        left = np.setdiff1d(np.arange(len(labels)), held)
        return {"train": data.take(torch.from_numpy(left)), "test": data.take(torch.from_numpy(held))}

    def _finished(self, data: AnySplit, split: str) -> AnySplit:
        """Returns the class-balanced subset of `data` that `train_examples` or `test_examples` asks for; of the bundled
        sample, in the shape of the set.
        """
        if (examples := self.examples[split]) is not None:
            place = "held-out images" if self.holdout and split == "test" else f"{split} split"
            chosen = balanced_subset(data.labels.numpy(), examples, f"the {place} of {self._title}")
            data = data.take(torch.from_numpy(chosen))
        if self.sample and isinstance(data, Split):
            return bundled.fit_to(data, self.channels, self.image_size)
        return data

    @property
    def _title(self) -> str:
        if self.sample:
            return "the bundled sample"
        return FOLDERS[self.name] if self.name in FOLDERS else SETS[self.name].title

    def train_dataloader(self) -> BatchLoader:
        return BatchLoader(self._source("train"), self.batch_size, self.seed, *self._place())

    def val_dataloader(self) -> EvalLoader:
        return EvalLoader(self._source("test"), self.eval_batch_size, *self._place())

    def test_dataloader(self) -> EvalLoader:
        return self.val_dataloader()

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _source(self, split: str) -> Source:
        train = split == "train"
        data = self._splits[split]
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        normalize = Normalize(self.mean, self.std, device) if self.normalize else Normalize()
        if isinstance(data, FolderSplit):
            return FolderSource(
                data,
                normalize,
                train=train,
                image_size=self.image_size,
                flip=self.flip,
                seed=self.seed,
                num_workers=self.num_workers,
                device=device,
            )
        return MemorySource(
            data,
            normalize,
            flip=train and self.flip,
            crop_padding=self.crop_padding if train else 0,
            seed=self.seed,
            device=device,
        )
