"""An outside package beside convrepro, both installed from wheels: its operator, network, configuration file and table
are counted, trained, exported, timed, compared and submitted, with nothing edited in convrepro.
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from support import command
from support.outside import PACKAGE
from support.table_on_cluster import result
from support.versions import OLDEST
from support.wheel import install

pytestmark = [pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
SMALL = ["logger=none", "trainer=cpu", "budget.train_examples=256", "budget.test_examples=100", "recipe.epochs=1"]
NETWORK = ["model=outside_ops.models:two_stages"]
OURS = ["--config-dir", "conf"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    package = tmp_path_factory.mktemp("package") / "outside"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    return install(tmp_path_factory.mktemp("wheels"), ROOT, package)


def test_an_installed_package_is_used_by_every_verb_and_on_the_cluster(installed, cluster, tmp_path):
    for name in ("conf", "tables"):
        shutil.copytree(PACKAGE / name, tmp_path / name)
    env = {**os.environ, **cluster.env, "PYTHONPATH": str(installed), "CONVREPRO_TABLES": str(tmp_path / "tables")}
    env |= {"CONVREPRO_SLURM_SITE": "", "CONVREPRO_SLURM_TIME": "50"}

    def typed(*words: str, own: Sequence[str] = OURS) -> str:
        done = command.convrepro(*words, *own, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = "import convrepro, outside_ops; print(convrepro.__file__, outside_ops.__file__)"
    with command.Python(["-c", where], cwd=tmp_path, env=env, stdout=-1, text=True) as python:
        assert python.communicate()[0].count(str(installed)) == 2

    assert "ghost_dw5" in typed("list", "convs")
    assert "GhostConv2d" in typed("count", *NETWORK, "conv=ghost_dw5")
    assert typed("count", "outside/ghost").count("Ghost") >= 2
    assert "top-1" in typed("train", *NETWORK, "conv=partial", *SMALL)
    assert "2 operators deployed" in typed(
        "export", *NETWORK, "conv=ghost_dw5", "--to", "net.pt2" if OLDEST else "net.onnx"
    )
    timing = ["--batch-size", "2", "--rounds", "1", "--modes", "inference"]
    assert "MACs x 0." in typed("bench", "outside/ghost", "--rows", "ghost5", *timing)
    words = ["compare", *NETWORK, "data=fashion_sample", *SMALL, "--budget", "smoke", "--modes", "none"]
    compared = typed(*words, "--convs", "ghost_dw5", "ghost(cheap_kernel=3)")
    assert re.search(r"ghost_dw5 +.*\d", compared)
    assert (tmp_path / "comparisons").is_dir()

    assert "3 to queue" in typed("submit", "outside", "--budget", "smoke", "--dry-run", *SMALL)
    told = typed("submit", "outside/ghost", "--budget", "smoke", *SMALL, *OURS, "--", "--export=NONE", own=())
    cluster.wait_until_over(*re.findall(r"^queued (\d+):", told, re.MULTILINE))
    assert "3 runs: 3 done" in typed("status", "outside/ghost", "--budget", "smoke", *SMALL)
    (folder,) = (tmp_path / "runs" / "outside" / "ghost").glob("ghost5*/smoke-seed0")
    assert result(folder)["config"]["conv"]["cheap_kernel"] == 5
