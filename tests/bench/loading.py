"""Measures how fast photographs are read: `python tests/bench/loading.py [--rounds 5] [--json FILE]`.

The training path of `data=imagenet` without a network: decode a JPEG, crop, resize, flip, collate, normalise. Images as
large as ImageNet's, and the same with their shorter side brought to 256 before, which is what a copy made once saves.
Needs a machine with nothing else to do.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from convrepro.data.folder import FolderSource, FolderSplit
from convrepro.data.loader import BatchLoader, Normalize
from convrepro.evidence.speed import Setting, busy, other_load, record, where_and_how
from convrepro.runs.storage import write_json

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STORED = {"500x375": (500, 375), "341x256": (341, 256)}  # ImageNet's mean is about 110 kB an image at 400x350
WORKERS = (0, 1, 2)
IMAGES, BATCH, SIDE = 512, 64, 224


def photographs(folder: Path) -> dict[str, FolderSplit]:
    """Blurred noise, which compresses as photographs do (about 0.6 byte a pixel), in each size that is `STORED`."""
    rng = np.random.default_rng(0)
    paths: dict[str, list[str]] = {name: [] for name in STORED}
    for i in range(IMAGES):
        noise = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        whole = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(0.7))
        for name, size in STORED.items():
            path = folder / f"{name}-{i}.jpg"
            whole.resize(size, Image.Resampling.BICUBIC).save(path, quality=80)
            paths[name].append(str(path))
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    return {name: FolderSplit(listed, labels) for name, listed in paths.items()}


def images_per_second(split: FolderSplit, workers: int) -> float:
    """Over an epoch, the start of the workers included."""
    words = {"train": True, "image_size": SIDE, "flip": True, "num_workers": workers}
    loader = BatchLoader(FolderSource(split, Normalize(MEAN, STD), **words), BATCH, seed=0)
    started = time.perf_counter()
    for _ in loader:
        pass
    return IMAGES / (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each, in turns (default: 5)")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        splits = photographs(Path(folder))
        before = busy()
        cells = [(name, workers) for name in STORED for workers in WORKERS]
        rates: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
        for _ in range(arguments.rounds):
            for name, workers in cells:
                rates[name, workers].append(images_per_second(splits[name], workers))
        for (name, workers), several in rates.items():
            size = statistics.mean(Path(path).stat().st_size for path in splits[name].paths)
            cell = {"stored": name, "bytes": round(size), "workers": workers, "median": statistics.median(several)}
            found.append({**cell, "low": min(several), "high": max(several)})
            print(f"{name}, {size / 1000:.0f} kB, {workers} workers: {found[-1]['median']:.0f} images/s", flush=True)
    if arguments.json:
        setting = Setting(BATCH, 1, True, arguments.rounds)
        content = record("loading", [], setting, where_and_how(setting))
        write_json(arguments.json, {**content, "loading": found, "other_load": other_load(before)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
