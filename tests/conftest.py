"""One thread a process: the suite runs several at once, and small tensors gain nothing from more."""

import os
from collections.abc import Iterator

import pytest

from cluster import LocalCluster

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_SILENT", "true")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A Slurm cluster of 2 nodes with 2 CPUs each, without accounting; skips where Slurm is not installed."""
    with LocalCluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started
