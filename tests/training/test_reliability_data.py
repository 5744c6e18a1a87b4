"""A data set that is damaged on disk: named in one sentence before anything is trained."""

import hashlib
import os
import signal
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convrepro.data.sets import SETS
from convrepro.errors import ConvReproError
from support.patience import wait
from support.small_runs import before_step, ended, science, start, train

COUNTS = {"train": 64, "test": 32}
RUN = ["model=deepshift_mnist_fc", "recipe=deepshift_mnist_v5", "recipe.epochs=1", "trainer=cpu", "logger=none"]
MNIST = [*RUN, "data=mnist", "data.download=false"]


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """The folder of an MNIST with fewer images, known by its digests as the whole one is."""
    known, rng = SETS["mnist"], np.random.default_rng(0)
    folder = tmp_path / "data" / known.folder
    folder.mkdir(parents=True)
    digests = {}
    for split, (images, labels) in known.files.items():
        n = COUNTS[split]
        contents = {images: idx(rng.integers(0, 256, (n, 28, 28))), labels: idx(np.arange(n) % 10)}
        digests[split] = {name: hashlib.md5(raw).hexdigest() for name, raw in contents.items()}
        for name, raw in contents.items():
            (folder / name).write_bytes(raw)
    monkeypatch.setitem(SETS, "mnist", replace(known, counts=COUNTS, files=digests))
    return folder


def flipped(raw: bytes) -> bytes:
    return raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]


def cut(raw: bytes) -> bytes:
    return raw[:-5]


def none(raw: bytes) -> bytes:
    return b""


def words(mnist):
    return [*MNIST, f"data_root={mnist.parents[1]}"]


def refused(given, runs) -> str:
    """What a run says that is not trained."""
    with pytest.raises(ConvReproError) as error:
        train(given, runs)
    assert not list(runs.rglob("*.ckpt"))
    assert not list(runs.rglob("progress.json")), "the training had begun"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("harm", [flipped, cut, none])
def test_a_file_that_is_not_the_original_to_the_byte_is_named(mnist, tmp_path, name, harm):
    path = mnist / name
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    said = refused(words(mnist), tmp_path / "runs")
    assert said.startswith(f"{path} is not the original MNIST file")
    assert "restore or remove it" in said
    path.write_bytes(whole)
    assert train(words(mnist), tmp_path / "runs")["status"] == "done"


@pytest.mark.parametrize("harm", [cut, none])
def test_unverified_a_cut_file_still_is_one_sentence(mnist, tmp_path, harm):
    path = mnist / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    given = [*words(mnist), "data.verify=false"]
    assert refused(given, tmp_path / "runs").startswith(f"{path} is no whole IDX file")
    path.write_bytes(flipped(whole))
    assert train(given, tmp_path / "runs")["status"] == "done", "an unverified copy is taken for what it is"


def photos(root: Path, workers: int) -> list[str]:
    """A folder of 8 + 4 photographs of two classes; returns the words of a run on them."""
    rng = np.random.default_rng(0)
    for split, each in (("train", 4), ("val", 2)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for i in range(each):
                image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / split / label / f"{i}.jpg")
    given = ["model=resnet20_cifar", "recipe=default", "recipe.epochs=2", "data=imagenet", f"data.root={root}"]
    given += ["data.num_classes=2", "data.image_size=32", "recipe.batch_size=2", "trainer=cpu", "logger=none"]
    return [*given, "recipe.augment.crop_padding=0", f"trainer.num_workers={workers}"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_of_a_folder_is_named_by_the_worker_that_meets_it(tmp_path, workers):
    given = photos(tmp_path, workers)
    broken = tmp_path / "train" / "b" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ConvReproError, match=r"train/b/1\.jpg is no readable image") as error:
        train(given, tmp_path / "runs")
    assert str(error.value).startswith(str(broken))
    assert "\n" not in str(error.value)


def test_sigterm_to_all_processes_of_a_run_finds_its_workers_at_work_until_it_has_saved(tmp_path):
    """As Slurm sends it: to the processes that decode images too."""
    given = photos(tmp_path, workers=2)
    unbroken = science(train(given, tmp_path / "unbroken"))
    stepping = tmp_path / "stepping"
    process = start(given, tmp_path / "runs", first=before_step(7, stepping), start_new_session=True)
    wait(stepping.exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 143, errors
    assert "is saved" in errors
    assert science(train(given, tmp_path / "runs")) == unbroken
