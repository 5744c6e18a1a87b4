"""Two nodes train one row: the global batch is kept, so the result is the one of a process alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from convrepro.config.compose import compose_config
from convrepro.training.run import run

pytestmark = [pytest.mark.cluster]

#: One image at a time: no batch normalisation, no dropout. 8 steps of 64 images, with flips and shifts of the images.
ROW = ["model=deepshift_mnist_conv", "recipe.epochs=2", "recipe.batch_size=64", "logger=none"]
ROW += ["budget.train_examples=256", "budget.test_examples=101"]
TWO_NODES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
#: With a name: Lightning takes a job called bash or interactive for a process alone.
SRUN = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--job-name=ddp"]

#: The two differ in the order of float32 sums alone: 2**-24 = 6e-8 for each rounding, about 1e-6 over the thousands of
#: terms of a gradient, and 8 steps are too few for the training to amplify that ten times.
TOLERANCE = 1e-5


def alone(runs: Path, *words: str) -> dict[str, Any]:
    overrides = [*ROW, "trainer=cpu", *words, f"runs={runs}"]
    return run(compose_config(overrides), overrides, echo=lambda line: None)


def losses(result: dict[str, Any]) -> list[float]:
    return [line[key] for line in result["history"] for key in ("train/loss", "val/loss")]


def weights(runs: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = runs.rglob("last.ckpt")
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_two_nodes_get_the_result_of_one_process(cluster, tmp_path):
    both = tmp_path / "both"
    done = cluster.run(*SRUN, "convrepro", "train", *ROW, *TWO_NODES, f"runs={both}", cwd=tmp_path)
    (path,) = both.rglob("result.json")
    two, one = json.loads(path.read_text()), alone(tmp_path / "one")

    assert losses(two) == pytest.approx(losses(one), rel=TOLERANCE)
    assert two["metrics"]["last"]["top1"] == pytest.approx(one["metrics"]["last"]["top1"], abs=100 / 101 + 1e-3)
    torch.testing.assert_close(weights(both), weights(tmp_path / "one"), rtol=0, atol=TOLERANCE)
    assert two["static"] == one["static"]
    assert two["overrides"] == one["overrides"]
    assert done.stdout.count("epoch 2/2") == 1, "rank 0 alone tells how it goes"

    twice_the_batch = alone(tmp_path / "twice", "recipe.batch_size=128")
    assert losses(twice_the_batch) != pytest.approx(losses(one), rel=100 * TOLERANCE), "the tolerance is too wide"


@pytest.mark.exhaustive
def test_rank_0_alone_writes(cluster, tmp_path):
    """Each rank is given a folder of its own: nothing is found in the second one's."""
    words = " ".join([*ROW, *TWO_NODES, "recipe.epochs=1"])
    command = f"exec convrepro train {words} runs={tmp_path}/rank$SLURM_PROCID"
    cluster.run(*SRUN, "bash", "-c", command, cwd=tmp_path)
    assert [path.name for path in (tmp_path / "rank0").rglob("result.json")] == ["result.json"]
    assert not (tmp_path / "rank1").exists()
