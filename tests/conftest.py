"""One thread a process: the suite runs several at once, and small tensors gain nothing from more."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from support.cluster import LocalCluster

#: What files share, by the end of their paths; the first that fits counts.
TOGETHER = {
    "cluster/test_chaos.py": "a cluster of its own, for as long as all others together",
    "cluster/test_array.py": "a cluster for all that the machine can do",
    "cluster/test_ddp.py": "a cluster for all that the machine can do",
    "cluster/test_local.py": "a cluster for all that the machine can do",
    "cluster/test_sweep.py": "a cluster for all that the machine can do",
    "report/test_papers.py": "the counts of every table",
    "report/test_dashboard.py": "a table that is trained once",
}

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_SILENT", "true")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A Slurm cluster of 2 nodes with 2 CPUs each, without accounting; skips where Slurm is not installed."""
    with LocalCluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files that share something expensive run in one process, one after the other; any other test runs anywhere.

    xdist's own marks for this (`xdist_group`) have no effect under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return next((group for end, group in TOGETHER.items() if file.endswith(end)), nodeid)

    return Together(config, log)
