"""Folders of image files, such as ImageNet: real files, decoded by this process and by workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from convrepro.data import ImageData
from convrepro.data.folder import read_image
from convrepro.errors import ConvReproError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = 28


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three classes of 6 + 3 images of different sizes: colour JPEG, grey PNG, PNG with alpha."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, each in (("train", 6), ("val", 3)):
        for label, (mode, channels, ending) in enumerate((("RGB", 3, "jpg"), ("L", 1, "png"), ("RGBA", 4, "png"))):
            folder = root / split / f"n{label}"
            folder.mkdir(parents=True)
            for i in range(each):
                small = rng.integers(0, 256, (5 + i, 7, channels), dtype=np.uint8).squeeze()
                Image.fromarray(small, mode).resize((50 + i, 40)).save(folder / f"{i}.{ending}")
    return root


def image_data(root: Path, **changes) -> ImageData:
    words = {"batch_size": 4, "eval_batch_size": 5, "normalize": True, "seed": 0, "num_classes": 3, "channels": 3}
    words |= {"augment": {"flip": True, "crop_padding": 0}, "mean": MEAN, "std": STD, "image_size": SIZE}
    data = ImageData(name="imagenet", root=root, download=False, verify=False, **words | changes)
    data.check()
    data.setup()
    return data


def epoch(data: ImageData, number: int = 0, start: int = 0) -> list[tuple[bytes, list[int]]]:
    loader = data.train_dataloader()
    state = loader.state_dict() | {"epoch": number, "batch": start}
    loader.load_state_dict(state)
    return [(images.contiguous().numpy().tobytes(), labels.tolist()) for images, labels in loader]


def test_training_batches_depend_on_seed_and_epoch_alone(photos):
    data = image_data(photos)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = epoch(data)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert epoch(image_data(photos)) == first
    assert epoch(data, start=2) == first[2:]
    assert len({first[0][0], epoch(data, number=1)[0][0], epoch(image_data(photos, seed=1))[0][0]}) == 3
    assert sorted(label for _, labels in first for label in labels) == [0] * 6 + [1] * 6 + [2] * 6


def test_workers_change_nothing(photos):
    assert epoch(image_data(photos, num_workers=2)) == epoch(image_data(photos))


def test_training_images_are_crops_of_their_file(tmp_path):
    """Of a horizontal ramp, a crop is a ramp, and a flipped one falls."""
    for split in ("train", "val"):
        folder = tmp_path / split / "ramp"
        folder.mkdir(parents=True)
        for i in range(40):
            Image.fromarray(np.tile(np.arange(0, 256, 4, np.uint8), (64, 1))).save(folder / f"{i}.png")
    for flip, falling in ((True, range(10, 31)), (False, range(1))):
        augment = {"flip": flip, "crop_padding": 0}
        data = image_data(tmp_path, num_classes=1, normalize=False, augment=augment, batch_size=40)
        ((images, _),) = data.train_dataloader()
        steps = images[..., -1] - images[..., 0]
        assert steps.abs().min() > 0.1
        assert len({round(step, 4) for step in steps[:, 0, 0].tolist()}) > 20  # crops of many widths
        assert (steps[:, 0, 0] < 0).sum() in falling


def test_eval_images_are_resized_and_centre_cropped_in_order(photos):
    data = image_data(photos)
    images, labels = (torch.cat(part) for part in zip(*data.val_dataloader(), strict=True))
    steps = [v2.Resize(32, antialias=True), v2.CenterCrop(SIZE), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    reference = v2.Compose([*steps, v2.Normalize(MEAN, STD)])
    paths = sorted((photos / "val").rglob("*.*"))
    expected = torch.stack([reference(Image.open(path).convert("RGB")) for path in paths])
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_subset_is_balanced(photos):
    data = image_data(photos, train_examples=7, test_examples=3)
    assert sorted(torch.cat([labels for _, labels in data.train_dataloader()]).bincount().tolist()) == [2, 2, 3]
    assert torch.cat([labels for _, labels in data.test_dataloader()]).bincount().tolist() == [1, 1, 1]


def make(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "train is missing: ImageNet cannot be downloaded"),
        (["train/a", "train/b", "train/c"], "val is missing"),
        (["train/a", "val/a"], "train has 1 class folders, but data.num_classes=3"),
        (["train/a", "train/b", "train/c", "val/a", "val/b", "val/d"], "class folder 'c' in only one of train and val"),
        (["train/a", "train/b", "train/c", "val/a", "val/b", "val/c"], "Found no valid file for the classes a, b, c"),
    ],
    ids=["nothing", "no val", "other classes", "different classes", "no images"],
)
def test_an_incomplete_folder_says_what_is_missing(tmp_path, folders, message):
    with pytest.raises(ConvReproError, match=message):
        image_data(make(tmp_path, *folders))


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_a_broken_image_is_named(tmp_path, damage):
    for split in ("train", "val"):
        folder = make(tmp_path, f"{split}/a") / split / "a"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "0.jpg")
    broken = tmp_path / "train" / "a" / "0.jpg"
    broken.write_bytes(b"no image" if damage == "text" else broken.read_bytes()[:900])
    with pytest.raises(ConvReproError, match=r"a/0.jpg is no readable image"):
        list(image_data(tmp_path, num_classes=1).train_dataloader())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ppm", b"P6\n1 x\n255\n"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
        ("a.jpg", b""),
        ("a.bmp", b"BM" + bytes(60)),
    ],
)
def test_whatever_pillow_raises_names_the_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConvReproError, match=rf"{name} is no readable image"):
        read_image(tmp_path / name)


def test_an_image_that_is_too_large_names_the_file(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ConvReproError, match=r"a\.png is no readable image .*decompression bomb"):
        read_image(tmp_path / "a.png")


def test_greys_of_16_bits_are_scaled(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_what_other_programs_leave_behind_is_named(tmp_path):
    make(tmp_path, "train/a", "train/.ipynb_checkpoints", "val/a", "val/.ipynb_checkpoints")
    with pytest.raises(ConvReproError, match=r"\.ipynb_checkpoints is a hidden folder of some program and no class"):
        image_data(tmp_path, num_classes=2)
    for folder in ("train", "val"):
        (tmp_path / folder / ".ipynb_checkpoints").rmdir()
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "a" / "x.jpg")
    (tmp_path / "train" / "a" / "._x.jpg").write_bytes(b"Mac OS X")
    with pytest.raises(ConvReproError, match=r"\._x\.jpg is a file of macOS about another file"):
        image_data(tmp_path, num_classes=1)
