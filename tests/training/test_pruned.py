"""Runs of networks that have lost filters: started from trained weights, killed, continued, pruned again, exported."""

import signal
from pathlib import Path

import pytest
import torch

from convrepro.cli.command import execute
from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from support.patience import wait
from support.small_runs import TINY, before_step, ended, science, start, train

WORDS = ["model=resnet8_cifar", "recipe.epochs=2", "recipe.batch_size=32", *TINY]
HALF = ["prune=l1", "prune.macs=0.5"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """The last checkpoint of a trained network with all its filters."""
    runs = tmp_path_factory.mktemp("dense")
    train([*WORDS, "recipe.epochs=1"], runs)
    (path,) = runs.rglob("last.ckpt")
    return path


@pytest.fixture(scope="module")
def half(dense, tmp_path_factory) -> tuple[Path, dict]:
    """The last checkpoint and the result of a network that lost half its MACs and was trained again."""
    runs = tmp_path_factory.mktemp("half")
    result = train([*WORDS, *HALF, f"weights={dense}"], runs)
    (path,) = runs.rglob("last.ckpt")
    return path, result


@pytest.mark.parametrize("by", ["l1", pytest.param("taylor", marks=pytest.mark.exhaustive)])
def test_a_pruned_run_that_is_killed_continues_as_an_unbroken_one(tmp_path, dense, by):
    words = [*WORDS, f"prune={by}", "prune.macs=0.5", f"weights={dense}", "trainer.checkpoint_steps=3"]
    whole = science(train(words, tmp_path / "whole"))
    marker = tmp_path / "step"
    process = start(words, tmp_path / "broken", before_step(7, marker))
    wait(lambda: list((tmp_path / "broken").rglob("last.ckpt")), process)
    process.send_signal(signal.SIGKILL)
    ended(process)
    said: list[str] = []
    assert science(train(words, tmp_path / "broken", said.append)) == whole
    assert any(line.startswith("resumes from") for line in said)
    assert any("pruned by" in line and "% of the MACs" in line for line in said)


def test_a_pruned_network_is_evaluated_trained_and_pruned_further_from_its_checkpoint(tmp_path, half):
    path, result = half
    evaluated = train([*WORDS, f"weights={path}", "train=false"], tmp_path)
    assert evaluated["metrics"]["last"]["top1"] == result["metrics"]["last"]["top1"]
    assert evaluated["static"] == result["static"]
    finetuned = train([*WORDS, f"weights={path}", "recipe.epochs=1"], tmp_path)
    assert finetuned["static"] == result["static"]
    again = train([*WORDS, f"weights={path}", "prune=l1", "prune.macs=0.3"], tmp_path)
    dense = 2 * result["static"]["macs"]
    assert 0.27 < again["static"]["macs"] / dense <= 0.31
    (last,) = (p for p in tmp_path.rglob("last.ckpt") if "pruned" in p.parent.parent.name)
    same = train([*WORDS, f"weights={last}", "prune=l1", "prune.macs=0.3", "train=false"], tmp_path)
    assert same["metrics"]["last"]["top1"] == again["metrics"]["last"]["top1"]


def test_a_pruned_network_is_exported_and_counted(tmp_path, half, capsys):
    path, result = half
    execute(["export", *WORDS, f"weights={path}", "--to", str(tmp_path / "network.onnx")])
    assert (tmp_path / "network.onnx").stat().st_size < 4.5 * result["static"]["params"] + 30_000
    execute(["count", *WORDS, *HALF])
    assert f"{result['static']['macs']:,} MACs" in capsys.readouterr().out


def test_starting_weights_decide_which_filters_are_left(dense, half):
    """Before it is trained again, each filter of the pruned network is one of the trained network's."""
    network, _ = build_network(compose_config([*WORDS, *HALF, f"weights={dense}"]))
    whole, _ = build_network(compose_config([*WORDS, f"weights={dense}"]))
    for name in ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"):
        left, before = network.get_submodule(name).weight, whole.get_submodule(name).weight
        scores = before.abs().sum((1, 2, 3))
        wanted = sorted(scores.argsort(descending=True)[: len(left)].tolist())
        assert torch.equal(left, before[wanted])


def test_a_weight_of_taylor_needs_images(dense):
    with pytest.raises(ConvReproError, match=r"prune.by=taylor needs gradients of training images, which `train`"):
        build_network(compose_config([*WORDS, "prune=taylor", "prune.macs=0.5", f"weights={dense}"]))


def test_what_makes_a_network_cheaper_names_its_run(tmp_path, half):
    path, result = half
    assert path.parent.parent.name.startswith("resnet8_cifar-pruned-")
    assert result["config"]["prune"]["by"] == "l1"
    assert len(result["protocol"]["digest"]) == 64
