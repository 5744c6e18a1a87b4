"""Files of the sets: read right, refused when foreign or broken, never executed, downloaded whole or not at all."""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from convrepro.data import ImageData
from convrepro.data.sets import SETS, ImageSet, parse_cifar, parse_idx
from convrepro.errors import ConvReproError

pytestmark = pytest.mark.unit

DATA = Path(os.environ.get("CONVREPRO_DATA", "data"))
PER_FILE = 4  # examples in each file of the tiny sets


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def cifar_batch(seed: int = 0, n: int = PER_FILE) -> dict:
    data = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {"data": data, "labels": [(seed + i) % 10 for i in range(n)]}


def md5(raw: bytes) -> str:
    return hashlib.md5(raw).hexdigest()


def tiny_cifar(root: Path, **changes) -> ImageSet:
    """CIFAR-10 with four images in each of its six files, written below `root`."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    known = SETS["cifar10"]
    files = {}
    for split, names in known.files.items():
        files[split] = {}
        for number, name in enumerate(names):
            raw = pickle.dumps(cifar_batch(number))
            (folder / name).write_bytes(raw)
            files[split][name] = md5(raw)
    counts = {split: PER_FILE * len(names) for split, names in files.items()}
    return replace(known, files=files, counts=counts, **changes)


def image_data(name: str, root: Path, **changes) -> ImageData:
    height, _, channels = SETS[name].shape
    words = {"image_size": height, "channels": channels, "num_classes": SETS[name].num_classes, "download": False}
    words |= {"verify": True, "mean": [0.5] * channels, "std": [0.5] * channels, "batch_size": 4, "normalize": False}
    return ImageData(name=name, root=root, augment={"flip": False, "crop_padding": 0}, seed=0, **words | changes)


def test_cifar_files_become_images_with_their_labels(tmp_path):
    split = tiny_cifar(tmp_path).load(tmp_path, "train", verify=True)
    batches = [cifar_batch(number) for number in range(5)]
    assert split.labels.tolist() == [label for batch in batches for label in batch["labels"]]
    for image, row in zip(split.images, np.concatenate([batch["data"] for batch in batches]), strict=True):
        for channel in range(3):  # each row: 1024 red, 1024 green, 1024 blue values, row by row
            assert image[..., channel].flatten().tolist() == row[channel * 1024 : (channel + 1) * 1024].tolist()


def test_fine_labels_of_cifar100_are_read():
    raw = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "coarse_labels": [1, 2], "fine_labels": [70, 99]})
    assert parse_cifar(raw, Path("train"))[1].tolist() == [70, 99]


def test_a_batch_pickled_by_python_2_is_read():
    """As the originals are: protocol 2, numpy's old module names, byte strings; written out by hand."""
    pixels = bytes(i % 251 for i in range(3072))
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K\x01M\x00\x0c\x86"  # (1, 3072)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01" + shape + dtype
    array += b"\x89T" + struct.pack("<I", len(pixels)) + pixels + b"tb"
    images, labels = parse_cifar(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu.", Path("data_batch_1"))
    assert labels.tolist() == [7]
    assert images.shape == (1, 32, 32, 3)
    assert images[0].transpose(2, 0, 1).tobytes() == pixels


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    raw = pickle.dumps(cifar_batch() | {"labels": Malicious(tmp_path / "ran")})
    with pytest.raises(ConvReproError, match=r"data_batch_1 is no readable CIFAR batch.*mkdir"):
        parse_cifar(raw, Path("data_batch_1"))
    assert not (tmp_path / "ran").exists()
    pickle.loads(raw)
    assert (tmp_path / "ran").exists()  # so it would have


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtin_functions_are_refused_too(name):
    with pytest.raises(ConvReproError, match=f"builtins.{name}"):
        parse_cifar(f"cbuiltins\n{name}\n.".encode(), Path("data_batch_1"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a pickle",
        pickle.dumps(cifar_batch())[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}),
        pickle.dumps({"data": np.zeros((2, 3000), np.uint8), "labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
    ],
    ids=["empty", "text", "truncated", "list", "no labels", "short rows", "labels missing"],
)
def test_a_broken_cifar_batch_is_named(raw):
    with pytest.raises(ConvReproError, match=r"some/data_batch_1 is no readable CIFAR batch .*: restore or remove it"):
        parse_cifar(raw, Path("some/data_batch_1"))


def test_idx_is_read():
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert np.array_equal(parse_idx(idx(array), Path("x")), array)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0\0\x08", idx(np.ones((2, 3)))[:7], idx(np.ones((2, 3)))[:-1], idx(np.ones(3)) + b"\0", b"\0\0\x0d\1" * 9],
    ids=["empty", "magic only", "cut in the header", "cut in the values", "too long", "floats"],
)
def test_a_broken_idx_file_is_named(raw):
    with pytest.raises(ConvReproError, match="raw/train-images is no whole IDX file"):
        parse_idx(raw, Path("raw/train-images"))


def with_label(batch: dict, label: float) -> dict:
    return batch | {"labels": [label, *batch["labels"][1:]]}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (cifar_batch(n=3), r"shape \(\(19, 32, 32, 3\), \(19,\)\).*CIFAR-10 has \(\(20"),
        (cifar_batch() | {"data": cifar_batch()["data"].astype(np.int16)}, "int16"),
        (with_label(cifar_batch(), 10), "not integers from 0 to 9"),
        (with_label(cifar_batch(), -1), "not integers from 0 to 9"),
        (with_label(cifar_batch(), 1.5), "not integers from 0 to 9"),
    ],
    ids=["too few", "wrong type", "label too large", "negative label", "fractional label"],
)
def test_wrong_counts_types_and_labels_are_refused(tmp_path, batch, message):
    known = tiny_cifar(tmp_path)
    (tmp_path / known.folder / "data_batch_3").write_bytes(pickle.dumps(batch))
    with pytest.raises(ConvReproError, match=message):
        known.load(tmp_path, "train", verify=False)


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_names_the_file_and_the_remedy(tmp_path, name):
    data = image_data(name, tmp_path / "none")
    for step in (data.check, data.setup):
        with pytest.raises(ConvReproError, match=rf"none/{SETS[name].folder}/.* is missing: .*CONVREPRO_DATA"):
            step()
    assert not (tmp_path / "none").exists()


def test_only_what_can_be_downloaded_passes_the_check_while_missing(tmp_path):
    image_data("cifar10", tmp_path, download=True).check()
    with pytest.raises(ConvReproError, match="is missing") as error:
        image_data("cifar10-jpeg", tmp_path, download=True).check()
    assert "data.download" not in str(error.value)


def test_a_foreign_file_is_refused_unless_it_is_called_a_copy(tmp_path):
    known = tiny_cifar(tmp_path)
    path = tmp_path / known.folder / "data_batch_2"
    raw = pickle.dumps(cifar_batch(77))
    path.write_bytes(raw)
    with pytest.raises(ConvReproError) as error:
        known.load(tmp_path, "train", verify=True)
    for part in (str(path), "not the original CIFAR-10", md5(raw), known.files["train"]["data_batch_2"]):
        assert part in str(error.value)
    assert "data=cifar10_jpeg" in str(error.value)
    assert "data.verify=false" in str(error.value)
    assert len(known.load(tmp_path, "train", verify=False).labels) == 20


def test_the_originals_md5_is_what_torchvision_checks(tmp_path):
    tiny_cifar(tmp_path)
    with pytest.raises(ConvReproError, match="expected c99cafc152244af753f735de768cd75f"):
        image_data("cifar10", tmp_path).setup()


@pytest.mark.skipif(bool(SETS["cifar10"].missing(DATA)), reason="no CIFAR-10 in CONVREPRO_DATA")
def test_cifar10_on_disk_is_the_original_or_taken_as_the_jpeg_copy():
    first = DATA / SETS["cifar10"].folder / "data_batch_1"
    if md5(first.read_bytes()) == SETS["cifar10"].files["train"]["data_batch_1"]:
        assert image_data("cifar10", DATA).check() is None
    else:
        with pytest.raises(ConvReproError, match=r"not the original CIFAR-10.*data=cifar10_jpeg"):
            image_data("cifar10", DATA).setup()
    data = image_data("cifar10-jpeg", DATA, verify=False, test_examples=100, eval_batch_size=100)
    data.setup()
    assert len(data.train_dataloader().source) == 50_000
    ((_, labels),) = data.test_dataloader()
    assert labels.bincount().tolist() == [10] * 10


@pytest.mark.skipif(bool(SETS["mnist"].missing(DATA)), reason="no MNIST in CONVREPRO_DATA")
def test_mnist_equals_torchvisions():
    for split in ("train", "test"):
        ours = SETS["mnist"].load(DATA, split, verify=True)
        theirs = datasets.MNIST(DATA, train=split == "train")
        assert ours.images[..., 0].equal(theirs.data)
        assert ours.labels.equal(theirs.targets)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder and the address at which it is served."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=folder)

        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def tiny_mnist(server: tuple[Path, str]) -> ImageSet:
    """MNIST with four images in each split, served as torchvision expects it."""
    folder, address = server
    known = SETS["mnist"]
    resources, files = [], {}
    for split, names in known.files.items():
        images, labels = np.random.default_rng(0).integers(0, 256, (4, 28, 28)), np.arange(4)
        files[split] = {}
        for name, array in zip(names, (images, labels), strict=True):
            raw = idx(array)
            packed = gzip.compress(raw)
            (folder / f"{name}.gz").write_bytes(packed)
            resources.append((f"{name}.gz", md5(packed)))
            files[split][name] = md5(raw)
    source = type("MNIST", (datasets.MNIST,), {"mirrors": [address], "resources": resources})
    return replace(known, files=files, counts={"train": 4, "test": 4}, source=source)


def test_mnist_is_downloaded_whole_and_present_files_stay(tmp_path, server):
    known, root = tiny_mnist(server), tmp_path / "data"
    (root / known.folder).mkdir(parents=True)
    mine = root / known.folder / "t10k-labels-idx1-ubyte"
    mine.write_bytes(b"mine")
    known.download(root)
    assert mine.read_bytes() == b"mine"
    assert sorted(p.name for p in (root / known.folder).iterdir()) == sorted(n for f in known.files.values() for n in f)
    assert known.load(root, "train", verify=True).labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(ConvReproError, match="t10k-labels-idx1-ubyte is not the original MNIST"):
        known.load(root, "test", verify=True)
    for served in server[0].iterdir():
        served.unlink()
    known.download(root)  # nothing is missing, so nothing is fetched


def test_cifar_is_downloaded(tmp_path, server):
    folder, address = server
    known = tiny_cifar(tmp_path / "origin")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        (tmp_path / "origin" / known.folder / "batches.meta").write_bytes(pickle.dumps({"label_names": []}))
        tar.add(tmp_path / "origin" / known.folder, known.folder)
    (folder / "tiny.tar.gz").write_bytes(packed.getvalue())
    meta = md5((tmp_path / "origin" / known.folder / "batches.meta").read_bytes())
    words = {"url": f"{address}tiny.tar.gz", "filename": "tiny.tar.gz", "tgz_md5": md5(packed.getvalue())}
    words |= {"meta": {"filename": "batches.meta", "key": "label_names", "md5": meta}}
    words |= {f"{split}_list": [list(pair) for pair in names.items()] for split, names in known.files.items()}
    known = replace(known, source=type("CIFAR10", (datasets.CIFAR10,), words))
    known.download(tmp_path / "data")
    assert len(known.load(tmp_path / "data", "train", verify=True).labels) == 20


@pytest.mark.parametrize("damage", ["absent", "wrong bytes"])
def test_a_failed_download_says_why_and_leaves_nothing(tmp_path, server, damage):
    known, root = tiny_mnist(server), tmp_path / "data"
    served = server[0] / "t10k-images-idx3-ubyte.gz"
    if damage == "absent":
        served.unlink()
    else:
        served.write_bytes(b"something else")
    reason = {"absent": "404", "wrong bytes": "corrupted"}[damage]
    with pytest.raises(ConvReproError, match=rf"MNIST cannot be downloaded to .*{reason}.*copy MNIST/raw there"):
        known.download(root)
    assert len(known.missing(root)) == 4
    assert not list((root / known.folder).iterdir())


def test_a_folder_that_cannot_be_written_says_so(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvReproError, match=r"cannot be downloaded to .*file"):
        tiny_mnist(server).download(tmp_path / "file")
