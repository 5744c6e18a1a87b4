"""Training and evaluation batches: right pixels, an order that depends on (seed, epoch) alone, exact resumption."""

import os
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import nn
from torchvision.transforms import v2

from convrepro.data import ImageData
from convrepro.data import sample as bundled
from convrepro.data.loader import BatchLoader, EvalLoader, Normalize
from convrepro.data.make_sample import sample_arrays
from convrepro.data.memory import MemorySource
from convrepro.data.sample import load_sample
from convrepro.data.sets import SETS, Split, balanced_subset
from convrepro.errors import ConvReproError
from support.recorders import Ranks, Recorder, content

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))
DATA = Path(os.environ.get("CONVREPRO_DATA", "data"))
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
NO_AUGMENT = {"flip": False, "crop_padding": 0}
CROP_AND_FLIP = {"flip": True, "crop_padding": 4}


def random_split(n: int, size: int = 12, channels: int = 3) -> Split:
    """Random images; each label is its image's index."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, size, size, channels), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(n))


def source_of(n: int, crop_padding: int = 2, seed: int = 0) -> MemorySource:
    return MemorySource(random_split(n), Normalize(), flip=True, crop_padding=crop_padding, seed=seed)


def sample_data(**changes) -> ImageData:
    words = OmegaConf.to_container(OmegaConf.load(next(p for p in CONFIGS if p.stem == "fashion_sample")))
    words |= {"root": "unused", "batch_size": 8, "augment": CROP_AND_FLIP, "normalize": True, "seed": 0}
    return ImageData(**words | {"train_examples": 60, "test_examples": 20} | changes)


def test_augmented_images_are_padded_crops_and_every_crop_occurs():
    split, p = random_split(400), 2
    seen = Counter()
    for images, labels in BatchLoader(source_of(400, p), 64, seed=0):
        for image, i in zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
            padded = np.pad(split.images[i].numpy(), ((p, p), (p, p), (0, 0)))
            crops = {(y, x): padded[y : y + 12, x : x + 12] for y in range(2 * p + 1) for x in range(2 * p + 1)}
            candidates = {(*at, flip): c[:, ::-1] if flip else c for at, c in crops.items() for flip in (0, 1)}
            (match,) = [key for key, c in candidates.items() if np.array_equal(np.rint(image * 255), c)]
            seen[match] += 1
    assert len(seen) == 2 * (2 * p + 1) ** 2
    assert 160 < sum(n for (_, _, flip), n in seen.items() if flip) < 240


def test_an_epoch_without_augmentation_is_the_training_set():
    split = random_split(50)
    batches = list(BatchLoader(MemorySource(split, Normalize()), 16, seed=0))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert labels.tolist() != list(range(50))
    order = labels.argsort()
    assert torch.equal(labels[order], split.labels)
    assert torch.equal((images[order] * 255).round().byte().permute(0, 2, 3, 1), split.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_eval_batches_equal_torchvisions_transform(channels):
    if channels == 1 and not SETS["mnist"].missing(DATA):
        split = SETS["mnist"].load(DATA, "test", verify=True).take(torch.arange(0, 10_000, 20))
    else:
        split = load_sample("test") if channels == 1 else random_split(100)
    mean, std = [0.13, 0.5, 0.7][:channels], [0.31, 0.2, 0.9][:channels]
    reference = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    loader = EvalLoader(MemorySource(split, Normalize(mean, std)), 64)
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    expected = torch.stack([reference(image.numpy()) for image in split.images])
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert torch.equal(labels, split.labels)


@pytest.mark.parametrize("loader", ["train", "val", "test"])
def test_images_are_channels_last_where_they_have_channels(loader):
    for channels, strides in ((3, (28 * 28 * 3, 1, 28 * 3, 3)), (1, (28 * 28, 28 * 28, 28, 1))):
        data = sample_data(channels=channels, mean=[0.3] * channels, std=[0.4] * channels)
        data.setup()
        images, _ = next(iter(getattr(data, f"{loader}_dataloader")()))
        assert images.stride() == strides
        assert images.dtype == torch.float32


def test_an_epoch_does_not_depend_on_what_came_before_nor_on_the_global_random_state():
    fresh, used = (BatchLoader(source_of(50), 8, seed=3) for _ in range(2))
    next(iter(used))  # abandoned
    list(used)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    for loader in (fresh, used):
        loader.set_epoch(5)
    assert content(fresh) == content(used)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_and_epoch_change_both_order_and_augmentation():
    def epoch(seed, number):
        loader = BatchLoader(source_of(50, seed=seed), 50, seed)
        loader.set_epoch(number)
        ((images, labels),) = loader
        return labels.tolist(), images[labels.argsort()].numpy().tobytes()

    orders, pixels = zip(*(epoch(*key) for key in ((0, 0), (0, 1), (1, 0), (1, 1))), strict=True)
    assert len({tuple(order) for order in orders}) == 4
    assert len(set(pixels)) == 4


@pytest.mark.parametrize(("n", "world"), [(48, 2), (50, 4), (3, 4)])
def test_the_global_batch_does_not_depend_on_the_number_of_devices(n, world):
    """Images too: n that the devices do not divide is filled up with the epoch's first examples."""
    source = source_of(n)
    ranks = [list(BatchLoader(source, 4, 0, rank, world)) for rank in range(world)]
    assert len({tuple(len(labels) for _, labels in batches) for batches in ranks}) == 1
    together = [
        sorted(
            (i, image.numpy().tobytes()) for images, labels in parts for i, image in zip(labels, images, strict=True)
        )
        for parts in zip(*ranks, strict=True)
    ]
    single = [list(zip(labels, images, strict=True)) for images, labels in BatchLoader(source, 4 * world, 0)]
    missing = -n % world
    single[-1] += [single[0][k % n] for k in range(missing)]
    assert together == [sorted((i, image.numpy().tobytes()) for i, image in batch) for batch in single]


@pytest.mark.parametrize(("n", "batch", "world"), [(100, 30, 1), (101, 10, 4), (7, 1, 3), (9, 4, 2)])
def test_each_test_example_is_evaluated_once_in_equally_many_batches(n, batch, world):
    loaders = [EvalLoader(source_of(n), batch, rank, world) for rank in range(world)]
    labels = [[labels.tolist() for _, labels in loader] for loader in loaders]
    assert sorted(i for rank in labels for part in rank for i in part) == list(range(n))
    assert {len(rank) for rank in labels} == {len(loader) for loader in loaders} == {len(loaders[0])}
    assert all(part for rank in labels for part in rank)


def test_fewer_test_examples_than_devices_raise():
    with pytest.raises(ConvReproError, match="2 test examples are too few for 3 devices"):
        EvalLoader(source_of(2), 1, rank=0, world_size=3)


EVERY_STEP = {"every_n_train_steps": 1}
WHEN = {
    "steps": EVERY_STEP,
    "epochs": {"save_on_train_epoch_end": True},
    "validations": {"save_on_train_epoch_end": False},
}


def fit(folder: Path, when: dict, checkpoint: Path | None = None, data: ImageData | None = None, **words) -> Recorder:
    """Three epochs of four batches, with a checkpoint folder/step=<steps>.ckpt at each moment that `when` says."""
    model = Recorder()
    words |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [ModelCheckpoint(folder, "{step}", save_top_k=-1, **when)]
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", callbacks=callbacks, **words)
    trainer.fit(model, data or sample_data(batch_size=16), ckpt_path=checkpoint, weights_only=True)
    return model


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize(
    ("when", "steps", "limit"),
    [("steps", (1, 4, 6), None), ("steps", (3, 4), 3), ("epochs", (4,), None), ("validations", (4, 8), None)],
    ids=["after a step", "after a step of a limited epoch", "after an epoch", "after validation"],
)
def test_a_run_that_lightning_resumes_sees_the_batches_of_an_unbroken_one(tmp_path, when, steps, limit):
    words = {"limit_train_batches": limit} if limit else {}
    whole = fit(tmp_path / "whole", WHEN[when], **words)
    assert len(whole.seen) == len(set(map(str, whole.seen))) == 3 * (limit or 4)
    for step in steps:
        resumed = fit(tmp_path / f"from {step}", WHEN[when], tmp_path / "whole" / f"step={step}.ckpt", **words)
        assert resumed.seen == whole.seen[step:]


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
@pytest.mark.parametrize(("word", "value"), [("seed", 1), ("batch_size", 8), ("train_examples", 61)])
def test_resuming_within_an_epoch_with_other_batches_raises(tmp_path, word, value):
    fit(tmp_path, EVERY_STEP, max_steps=5)
    data = sample_data(**{"batch_size": 16} | {word: value})
    with pytest.raises(ConvReproError, match="inside an epoch"):
        fit(tmp_path, EVERY_STEP, tmp_path / "step=5.ckpt", data)


def test_a_state_is_continued_once():
    loader, other = (BatchLoader(source_of(50), 8, seed=0) for _ in range(2))
    batches = iter(loader)
    first = content([next(batches), next(batches)])
    other.load_state_dict(loader.state_dict())
    assert other.state_dict() == loader.state_dict()
    assert first + content(other) == content(other) == content(loader)


def test_after_a_whole_epoch_the_batches_may_change():
    loader = BatchLoader(source_of(50), 8, seed=0)
    loader.load_state_dict({"epoch": 2, "batch": 4, "seed": 9, "examples": 64, "global_batch": 16})
    loader.set_epoch(3)
    assert len(list(loader)) == len(loader) == 7


def test_two_processes_share_each_batch_and_the_test_set(tmp_path):
    words = {"num_sanity_val_steps": 0, "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_spawn", **words)
    trainer.fit(Ranks(tmp_path), sample_data(batch_size=8, train_examples=40, test_examples=30))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    single = sample_data(batch_size=16, train_examples=40, test_examples=30)
    single.setup()
    loader = single.train_dataloader()
    expected = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        expected += [sorted(labels.tolist()) for _, labels in loader]
    together = zip(ranks[0]["train"], ranks[1]["train"], strict=True)
    assert [sorted(a[0] + b[0]) for a, b in together] == expected
    evaluated = sorted(label for rank in ranks for labels, _ in rank["val"] for label in labels)
    assert evaluated == sorted(load_sample("test").labels[:30].tolist() * 2)


def test_a_subset_is_balanced_nested_and_the_same_for_every_seed():
    labels = np.random.default_rng(0).integers(0, 7, 1000)
    large, small = balanced_subset(labels, 501, "it"), balanced_subset(labels, 30, "it")
    assert set(np.bincount(labels[small])) <= {4, 5}
    assert set(np.bincount(labels[large])) <= {71, 72}
    assert len(set(large)) == 501
    assert np.array_equal(large[:30], small)
    splits = []
    for seed in (0, 1):
        data = sample_data(seed=seed, train_examples=37)
        data.setup()
        splits.append(content([next(iter(EvalLoader(data.train_dataloader().source, 37)))])[0][0])
    assert splits[0] == splits[1]


def test_a_subset_takes_what_is_left_of_a_class_that_runs_out():
    labels = np.repeat([0, 1, 2], [2, 50, 50])
    assert np.bincount(labels[balanced_subset(labels, 60, "it")]).tolist() == [2, 29, 29]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_sample_takes_the_shape_of_every_set(config):
    words = OmegaConf.to_container(OmegaConf.load(config)) | {"root": "nowhere", "train_examples": 20, "seed": 0}
    data = ImageData(**words, batch_size=10, test_examples=10, sample=True, augment=NO_AUGMENT, normalize=True)
    data.check()
    data.prepare_data()
    data.setup()
    shape = (words["channels"], words["image_size"], words["image_size"])
    for loader, each in ((data.train_dataloader(), 2), (data.val_dataloader(), 1)):
        batches = list(loader)
        assert all(images.shape == (10, *shape) for images, _ in batches)
        assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [each] * 10


def test_the_sample_is_balanced_and_resizing_keeps_the_picture():
    for split, each in (("train", 600), ("test", 100)):
        assert load_sample(split).labels.bincount().tolist() == [each] * 10
    large, same = (sample_data(image_size=size, augment=NO_AUGMENT, normalize=False) for size in (56, 28))
    for data in (large, same):
        data.setup()
    ((big, _), (small, _)) = (next(iter(data.val_dataloader())) for data in (large, same))
    assert (nn.functional.avg_pool2d(big, 2) - small).abs().mean() < 0.03


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason=f"the originals are not in {FASHION_MNIST}")
def test_the_script_makes_the_sample_again():
    arrays = sample_arrays(FASHION_MNIST)
    for split in ("train", "test"):
        stored = load_sample(split)
        assert np.array_equal(arrays[f"{split}_images"], stored.images[..., 0])
        assert np.array_equal(arrays[f"{split}_labels"], stored.labels)


def test_setup_reads_once():
    data = sample_data()
    data.setup("fit")
    first = data.train_dataloader().source
    data.setup("test")
    assert content(EvalLoader(first, 60)) == content(EvalLoader(data.train_dataloader().source, 60))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cifar11"}, "data.name='cifar11' is unknown; valid: mnist, .*fashion-sample"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"test_examples": 0}, "test_examples=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"augment": {"flip": True}}, "must have exactly the keys"),
        ({"augment": {"flip": True, "crop_padding": -1}}, "crop_padding=-1 must be at least 0"),
        ({"mean": [0.1, 0.2]}, "one value for each of the 1 channels"),
        ({"std": [0.0]}, "std must be positive"),
        ({"num_classes": 9}, "num_classes=9.*sample needs data.num_classes >= 10"),
        ({"name": "mnist", "image_size": 32}, r"image_size=32.*MNIST has .*\(28, 28, 1\)"),
        ({"name": "mnist", "num_classes": 100}, "num_classes=100.*10 classes"),
        ({"name": "imagenet"}, "ImageNet has 3 channels"),
    ],
)
def test_values_that_cannot_be_meant_raise_before_anything_is_read(changes, message):
    with pytest.raises(ConvReproError, match=message):
        sample_data(**changes)


def test_more_examples_than_there_are_raise():
    with pytest.raises(ConvReproError, match=r"7000 examples are asked for, but the train split .* has 6000"):
        sample_data(train_examples=7000).setup()


def digits(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images]


def test_what_is_held_out_is_of_the_training_images_the_same_for_every_seed_and_not_trained_on(monkeypatch):
    read = []
    load = bundled.load_sample
    monkeypatch.setattr(bundled, "load_sample", lambda split: read.append(split) or load(split))
    data = sample_data(holdout=0.1, seed=3, train_examples=None, test_examples=None)
    assert data.train_examples() == 5400
    data.setup()
    assert read == ["train"], "the test images are not read"
    train, held = data._splits["train"], data._splits["test"]
    assert torch.bincount(held.labels).tolist() == [60] * 10
    assert torch.bincount(train.labels).tolist() == [540] * 10
    assert sorted(digits(train) + digits(held)) == sorted(digits(load("train")))
    again = sample_data(holdout=0.1, seed=8, train_examples=50, test_examples=20)
    again.setup()
    assert set(digits(again._splits["test"])) <= set(digits(held))
    assert set(digits(again._splits["train"])) <= set(digits(train))
    assert [len(again._splits[split].labels) for split in ("train", "test")] == [50, 20]


def test_the_sample_in_the_place_of_a_set_of_more_classes_is_divided_by_its_own():
    data = sample_data(holdout=0.1, num_classes=1000, train_examples=None, test_examples=None)
    data.setup()
    assert torch.bincount(data._splits["test"].labels).tolist() == [60] * 10


@pytest.mark.parametrize("share", [0.001, 0.9999])
def test_a_share_that_leaves_a_class_empty_is_refused(share):
    with pytest.raises(ConvReproError, match=rf"budget.holdout={share} holds out .* of 6000 training"):
        sample_data(holdout=share).setup()
