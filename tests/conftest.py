"""One thread a process: the suite runs several at once, and small tensors gain nothing from more."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import command, tiers
from support.cluster import LocalCluster

GUARD = tiers.Guard()

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_SILENT", "true")
if "PYTEST_XDIST_WORKER" not in os.environ:  # one server and one cache of counts, empty at the start, for all processes
    command.begin_session()
    os.environ["CONVREPRO_CACHE"] = tempfile.mkdtemp(prefix="convrepro-cache-")
    atexit.register(shutil.rmtree, os.environ["CONVREPRO_CACHE"], ignore_errors=True)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start need not compile each file again


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A Slurm cluster of 2 nodes with 2 CPUs each, without accounting; skips where Slurm is not installed."""
    with LocalCluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Fixtures of any scope belong to the test that asks for them first."""
    with GUARD.watching(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with GUARD.watching(item):
        return (yield)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return tiers.is_left_out(collection_path, config.getoption("markexpr")) or None


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tiers.assign(items)
    if hasattr(config, "workerinput"):  # several processes share the tests
        items.sort(key=tiers.rank)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # or each collection looks at half a million objects of libraries


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return tiers.scheduler(config, log)
