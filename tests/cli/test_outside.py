"""An outside package with operators, a network, a configuration file and a table, used by every verb without an edit.

The package is a copy on PYTHONPATH that is not installed. What is asked of it here is asked as a user types it.
"""

import json
import os
import shutil

import pytest

from convrepro.config import plugins
from convrepro.config.compose import compose_config
from convrepro.evidence.counts import count
from convrepro.evidence.width import thinned
from support.command import convrepro
from support.outside import PACKAGE, PLUGIN, own_registry

SMALL = ["logger=none", "trainer=cpu", "budget.train_examples=256", "budget.test_examples=100", "recipe.epochs=1"]
NETWORK = ["model=outside_ops.models:two_stages", "conv=ghost_dw5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("outside") / "package"
    shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture(scope="module")
def typed(folder):
    """Types a command in the folder of the package; returns what it prints."""

    def typed(*words, status=0, **variables):
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "CONVREPRO_TABLES": str(folder / "tables"), **variables}
        done = convrepro(*words, cwd=folder, env=environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if not status else done.stderr

    return typed


OUTSIDE = [*PLUGIN, "--config-dir", "conf"]


def test_it_is_listed_and_counted(typed):
    listed = typed("list", "convs", *OUTSIDE)
    assert "ghost_dw5                The Ghost module with 5x5 cheap operations." in listed
    assert "partial                  FasterNet's partial convolution" in listed
    assert "hetconv" in listed
    counted = typed("count", *NETWORK, *OUTSIDE)
    # 3x3 from 8 channels: 8 filters at 14x14, 16 at 7x7; half of them are convolved, half are 5x5 of the others
    ghosts = (4 * 8 * 9 + 4 * 25) * 14 * 14 + (8 * 8 * 9 + 8 * 25) * 7 * 7
    assert f"\n{ghosts + 72 * 14 * 14 + 160:,} MACs" in counted
    assert counted.count("GhostConv2d") == 4  # two layers, and the norms in each
    assert counted == typed("count", *NETWORK, CONVREPRO_PLUGINS="outside_ops.operators", CONVREPRO_CONFIG_DIR="conf")


def test_a_file_of_an_operators_own_name_is_its_configuration_without_a_word_of_hydra(folder, tmp_path):
    (tmp_path / "conv").mkdir()
    (tmp_path / "conv" / "ghost.yaml").write_text("# Three of each.\n{name: ghost, where: all, ratio: 3}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    words = ["train", "conv=ghost", "--cfg", "job", *PLUGIN, "--config-dir", str(tmp_path)]
    done = convrepro(*words, cwd=folder, env=environment)
    assert done.returncode == 0
    assert "ratio: 3" in done.stdout
    assert done.stderr == ""


def test_an_argument_of_a_factory_is_set_and_its_width_is_known(monkeypatch):
    monkeypatch.setenv(plugins.PLUGINS, PLUGIN[1])
    with own_registry():
        whole = compose_config([NETWORK[0], "model_args.width=16"])
        macs = count(whole)[0].total("macs")
        knob, title = thinned(compose_config([NETWORK[0]]), int(macs) // 8)
        assert knob.startswith("model_args.width=")
        assert title.startswith("dense, width=")
        assert 0.08 < count(compose_config([NETWORK[0], knob]))[0].total("macs") / macs < 0.16


def test_a_factory_that_ignores_the_number_of_classes_is_told_before_training(typed, folder):
    (folder / "outside_ops" / "stubborn.py").write_text(
        "from outside_ops.models import two_stages\n\n"
        "def ten(num_classes, in_chans):\n    return two_stages(7, in_chans)"
    )
    message = typed("train", "model=outside_ops.stubborn:ten", *SMALL, *PLUGIN, status=2)
    assert "model outside_ops.stubborn:ten returns (1, 7) for one image, but a classifier" in message
    assert "a tensor (1, 10): its argument num_classes is 10" in message


def test_without_the_plugin_nothing_of_it_is_imported(typed):
    message = typed("count", *NETWORK[:1], status=2)
    assert "belongs to no plugin; give --plugin outside_ops.models if you trust it" in message
    unknown = typed("count", "model=resnet20_cifar", "conv=ghost", status=2)
    assert "conv=ghost does not exist" in unknown
    assert "; for one of another package, give --plugin MODULE" in unknown
    assert len(message.splitlines()) == 1
    dotted = typed("count", "model=outside_ops.models.two_stages", *PLUGIN, status=2)
    assert "did you mean outside_ops.models:two_stages?" in dotted


@pytest.mark.exhaustive
def test_it_is_trained_by_the_line_that_run_prints_and_its_weights_start_another(typed, folder):
    line = typed("run", "outside/ghost", "--rows", "ghost5", "--budget", "smoke", "--dry-run", *SMALL, *OUTSIDE)
    words = line.split()
    assert words[:2] == ["convrepro", "train"]
    assert words[-4:] == [*PLUGIN, "--config-dir", str(folder / "conf")]
    assert "top-1" in typed(*words[1:])
    (result,) = (folder / "runs" / "outside" / "ghost").rglob("result.json")
    assert json.loads(result.read_text())["config"]["conv"]["cheap_kernel"] == 5
    shown = typed("run", "outside/ghost", "--rows", "ghost5", "--budget", "smoke", *SMALL, *OUTSIDE)
    assert "finished" in shown
    assert "has changed" not in shown
    recorded = json.loads(result.read_text())["environment"]["plugins"]
    assert list(recorded) == ["outside_ops"]
    (folder / "outside_ops" / "gain.py").write_text("GAIN = 2")
    shown = typed("run", "outside/ghost", "--rows", "ghost5", "--budget", "smoke", *SMALL, *OUTSIDE)
    assert "skipped, although the code of outside_ops has changed since: to train again, move the folder away" in shown
    weights = f"weights={result.parent / 'last.ckpt'}"
    again = typed("train", *NETWORK, weights, "train=false", *SMALL, *OUTSIDE)
    assert "loaded as they are, with ghost in place" in again


@pytest.mark.exhaustive
def test_two_processes_of_ddp_have_the_plugin(typed):
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", *[w for w in SMALL if "trainer" not in w]]
    assert "top-1" in typed("train", *NETWORK, *two, "seed=3", *OUTSIDE)


@pytest.mark.exhaustive  # as `cluster/test_wheel.py` does it with the package installed
def test_it_is_benched_and_exported(typed, folder):
    small = ["--batch-size", "2", "--rounds", "1", "--modes", "inference"]
    assert "MACs x 0.597" in typed("bench", "outside/ghost", "--rows", "ghost", *small, *OUTSIDE)
    assert "2 operators deployed" in typed("export", *NETWORK, "--to", "net.pt2", *OUTSIDE)
    assert (folder / "net.pt2").exists()


def test_jobs_of_slurm_have_the_plugin_and_the_folder(typed, folder):
    shown = typed("submit", "outside/ghost", "--dry-run", *SMALL, *OUTSIDE, CONVREPRO_SLURM_SITE="")
    options = f"--plugin outside_ops.operators --config-dir {folder / 'conf'} "
    assert shown.count(f"convrepro.cli task {options}") == 2
    assert shown.count(f"convrepro.cli gather {options}") == 1


def test_a_sweep_has_the_plugin(typed):
    swept = ["model=outside_ops.models:two_stages", "conv=ghost_dw5,partial", "seed=5"]
    assert typed("train", "-m", *swept, *SMALL, *OUTSIDE).count("done: ") == 2


@pytest.mark.exhaustive
def test_a_network_of_torchvision_is_counted_and_trained(typed):
    assert "parameters (11.18 M)" in typed("count", "model=torchvision:resnet18", "data=cifar10", "conv=standard")
    network = ["model=torchvision:squeezenet1_1", "conv=partial", "budget.max_image_size=32", *PLUGIN]
    assert "top-1" in typed("train", *network, *SMALL, "budget.train_examples=128")
