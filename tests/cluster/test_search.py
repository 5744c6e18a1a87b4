"""A search on a cluster: its script, and four workers of a job array that share one study."""

import json
import os
import subprocess

import pytest

from convrepro.cluster.scripts import Shape, workers_script
from convrepro.cluster.site import Site
from convrepro.search.study import Study
from convrepro.search.trial import front, points
from support.command import convrepro

WORDS = [
    "search",
    "model=resnet8_cifar",
    "model_args.stem_stride=2",
    "data=fashion_sample",
    "trainer=cpu",
    "logger=none",
]
WORDS += ["budget.train_examples=100", "budget.test_examples=50", "--budget", "smoke", "--space", "stages"]
WORDS += ["--trials", "8", "--name", "s", "--sampler", "random", "--no-final"]


def test_a_worker_executes_the_command_and_is_queued_again_where_it_makes_room(tmp_path):
    site = Site({"partition": "short", "array": "%2"}, ("export A='x y'",))
    words = ["search", "conv.entries=[{a: 'b'}]", "--trials=4"]
    text = workers_script(words, 3, Shape(1, 1, True), site, "net/s", tmp_path / "100%", tmp_path)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    for line in ("--array=0-2%2", "--partition=short", "--requeue", "--gpus-per-node=1", "--signal=SIGUSR1@90"):
        assert f"#SBATCH {line}" in text.splitlines()
    assert "convrepro.cli search 'conv.entries=[{a: '\"'\"'b'\"'\"'}]' --trials=4" in text
    assert "[ $code != 138 ] || exec scontrol requeue" in text


@pytest.mark.cluster
def test_four_workers_of_an_array_share_a_search(cluster, tmp_path):
    env = {**os.environ, **cluster.env, "CONVREPRO_SLURM_SITE": ""}
    done = convrepro(*WORDS, "--submit", "4", "--", "--time=30", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    array = done.stdout.partition("queued ")[2].partition(":")[0]
    study = Study(tmp_path / "runs" / "searches" / "resnet8_cifar" / "s")
    states = cluster.wait_until_over(*(f"{array}_{worker}" for worker in range(4)))
    logs = "".join(path.read_text() for path in study.folder.rglob("worker_*.log"))
    assert set(states.values()) == {"COMPLETED"}, logs
    trials = study.trials()
    assert [(trial["number"], trial["state"]) for trial in trials] == [(n, "complete") for n in range(8)], logs
    assert len({trial["worker"] for trial in trials}) == 4
    assert all("(job " in trial["worker"] for trial in trials)
    (pages,) = (tmp_path / "searches" / "resnet8_cifar").glob("*-trials.json")
    content = json.loads(pages.read_text())
    assert content["trials"] == trials
    assert content["front"] == front(points(trials))
