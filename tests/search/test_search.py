"""Searches with real runs: killed, shared by several workers, stopped early, and away from the test images."""

import json
import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from convrepro.cli.main import main
from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.evidence.counts import count
from convrepro.search.samplers import SAMPLERS
from convrepro.search.study import Study
from convrepro.search.trial import Trial, front, points
from convrepro.tables import load_table
from convrepro.training.data import image_data
from support.command import Python, convrepro
from support.patience import PATIENCE, wait

SPACE = """
name: few
where: dense_kxk
group: 1
choices: ["hetconv(p=4,8)", dwc_pwc]
options: {}
"""
NETWORK = ["model=resnet8_cifar", "model_args.stem_stride=2", "data=fashion_sample", "trainer=cpu", "logger=none"]
TINY = ["budget.train_examples=100", "budget.test_examples=50", "recipe.batch_size=50"]
WORDS = ["search", *NETWORK, *TINY, "--budget", "smoke", "--space", "few", "--name", "s"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small space of the user's own, which commands in this process find for one test alone."""
    monkeypatch.setenv("CONVREPRO_CONFIG_DIR", "")
    return folder_with_space(tmp_path)


def folder_with_space(folder: Path) -> Path:
    (folder / "conf" / "search").mkdir(parents=True)
    (folder / "conf" / "search" / "few.yaml").write_text(SPACE)
    return folder


def words(*more: str, trials: int = 3) -> list[str]:
    return [*WORDS, "--config-dir", "conf", "--trials", str(trials), *more]


def trials_in(folder: Path) -> list[Trial]:
    return Study(folder / "runs" / "searches" / "resnet8_cifar" / "s").trials()


def same(trial: Trial) -> dict:
    """What must be equal between two searches of the same thing: everything but clocks, workers and folders."""
    return {key: value for key, value in trial.items() if key not in ("worker", "started", "ended", "run")}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search within a constraint, to its end."""
    folder = folder_with_space(tmp_path_factory.mktemp("searched"))
    more = ["--max-macs", "0.6", "--sampler", "random", "--finalists", "1", "--uniform", "1"]
    return folder, more, convrepro(*words(*more, trials=4), cwd=folder)


def test_a_search_ends_with_an_ordinary_table(searched):
    folder, _, done = searched
    assert done.returncode == 0, done.stderr
    table = load_table("resnet8_cifar/s", folder / "searches")
    found = [row for row in table.rows if row.label.startswith("found")]
    uniform = [row.label for row in table.rows if row.label.endswith("everywhere")]
    assert len(found) == 1
    assert len([row for row in table.rows if row.label.startswith("dense, widths=")]) == 1
    assert "dense" in [row.id for row in table.rows]
    trials = trials_in(folder)
    assert len(uniform) == 1
    for row in found:
        trial = trials[int(row.label.rsplit(" ", 1)[1])]
        again = compose_config(table.overrides(row))
        searched_for = json.loads((folder / "runs" / trial["run"] / "result.json").read_text())["config"]
        assert again.conv.model_dump() == searched_for["conv"]
        assert again.budget.holdout is None
        assert searched_for["budget"]["holdout"] == 0.2
        assert int(count(again)[0].total("macs")) == trial["macs"]


def test_what_breaks_a_constraint_is_recorded_and_not_trained(searched):
    folder, _, _ = searched
    trials = trials_in(folder)
    dense = int(count(compose_config(NETWORK))[0].total("macs"))
    feasible = [trial for trial in trials if trial["state"] != "infeasible"]
    assert len(feasible) == 4
    assert all(trial["macs"] <= 0.6 * dense for trial in feasible)
    assert all(trial["macs"] > 0.6 * dense and "run" not in trial for trial in trials if trial not in feasible)
    assert len(list((folder / "runs" / "adhoc").rglob("result.json"))) == len(
        {json.dumps(trial["params"]) for trial in feasible}
    )


def test_pages_say_which_accuracy_is_held_out_and_which_is_test(searched):
    folder, _, done = searched
    stem = folder / "searches" / "resnet8_cifar" / "s"
    for suffix in ("csv", "md", "html", "json"):
        assert "test top-1" in stem.with_suffix(f".{suffix}").read_text(), suffix
    for name in ("s-trials.csv", "s-trials.json", "s.md", "s.html"):
        assert "held-out top-1" in (stem.parent / name).read_text(), name
    assert "held-out" in done.stdout
    assert "test top-1" in done.stdout
    assert (stem.parent / "s-trials.svg").read_text().startswith("<?xml")
    content = json.loads((stem.parent / "s-trials.json").read_text())
    assert len(content["trials"]) == len(trials_in(folder))


@pytest.mark.exhaustive
def test_the_same_command_again_trains_nothing(searched):
    folder, more, _ = searched
    before = trials_in(folder)
    done = convrepro(*words(*more, trials=4), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/" not in done.stdout
    assert trials_in(folder) == before


def test_another_search_of_the_name_is_refused(tmp_path):
    study, settings = Study(tmp_path / "s"), {"sampler": "random", "space": {"where": "dense_kxk"}}
    study.open({"schema": 1, "protocol": "a", "settings": settings})
    study.open({"schema": 1, "protocol": "a", "settings": settings})
    with pytest.raises(ConvReproError, match="its sampler was random and is tpe; give this one a name of its own by"):
        study.open({"schema": 1, "protocol": "a", "settings": {**settings, "sampler": "tpe"}})
    with pytest.raises(ConvReproError, match="is another search: its recipe, budget or data differ"):
        study.open({"schema": 1, "protocol": "b", "settings": settings})


@pytest.mark.parametrize("sampler", ["tpe", *(pytest.param(s, marks=pytest.mark.exhaustive) for s in SAMPLERS)])
def test_each_sampler_searches(sampler, place, monkeypatch, capsys):
    """The others search in the tests of workers and of kills, too."""
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        main(words("--sampler", sampler, "--no-final"))
    assert not end.value.code, capsys.readouterr()
    trials = trials_in(place)
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    assert not (place / "searches" / "resnet8_cifar" / "s.yaml").exists()


@pytest.mark.parametrize("sampler", ["controller", pytest.param("random", marks=pytest.mark.exhaustive)])
def test_a_search_that_is_killed_at_any_moment_continues_as_if_it_had_not_been(sampler, place):
    """SIGKILL after random times, until the search comes through; then it is compared with one that was not killed."""
    whole = folder_with_space(place / "whole")
    more = ["--sampler", sampler, "--no-final", "recipe.epochs=2", "budget.epochs=2"]
    done = convrepro(*words(*more), cwd=whole)
    assert done.returncode == 0, done.stderr
    draw, ended, kills = random.Random(sampler), {}, 0
    texts = ["-m", "convrepro.cli", *words(*more)]
    while True:
        started = time.monotonic()
        known = len(ended)
        with Python(texts, cwd=place, stdout=-3, stderr=-3) as process:
            if kills < 2:
                # the first trial that is new is at work, or a moment has passed since
                wait(lambda known=known: len(trials_in(place)) > known or process.poll() is not None)
                time.sleep(draw.uniform(0, 1.5))
                process.kill()
                kills += 1
            code = process.wait(PATIENCE)
        found = {trial["number"]: trial for trial in trials_in(place) if trial["state"] != "running"}
        assert all(found[number] == trial for number, trial in ended.items()), "a trial that had ended has changed"
        ended = found
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        assert time.monotonic() - started < PATIENCE
    assert [same(trial) for trial in trials_in(place)] == [same(trial) for trial in trials_in(whole)]


@pytest.mark.exhaustive
def test_two_workers_share_a_search(place):
    command = ["-m", "convrepro.cli", *words("--sampler", "nsga2", "--no-final", trials=6)]
    workers = [Python(command, cwd=place, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    said = [worker.communicate(timeout=PATIENCE) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    trials = trials_in(place)
    assert [trial["number"] for trial in trials] == list(range(6))
    assert len({trial["worker"] for trial in trials}) == 2
    assert {trial["state"] for trial in trials} == {"complete"}
    twins: dict[str, set[str]] = {}
    for trial in trials:
        twins.setdefault(json.dumps(trial["params"]), set()).add(str(trial["top1"]))
    assert all(len(accuracies) == 1 for accuracies in twins.values())
    content = json.loads((place / "searches" / "resnet8_cifar" / "s-trials.json").read_text())
    assert content["trials"] == trials
    assert content["front"] == front(points(trials))


@pytest.mark.exhaustive
def test_halving_stops_runs_early_and_the_front_has_whole_ones_only(place, monkeypatch):
    monkeypatch.chdir(place)
    more = ["--halving", "--no-final", "--sampler", "random", "recipe.epochs=4", "budget.epochs=4"]
    with pytest.raises(SystemExit):
        main(words(*more, trials=6))
    trials = trials_in(place)
    stopped = [trial for trial in trials if trial["state"] == "stopped"]
    assert stopped
    assert all(len(trial["accuracies"]) in (1, 2) for trial in stopped)
    assert all(list(trial["accuracies"]) == ["1", "2", "3", "4"] for trial in trials if trial["state"] == "complete")
    content = json.loads((place / "searches" / "resnet8_cifar" / "s-trials.json").read_text())
    assert not {trial["number"] for trial in stopped} & set(content["front"])
    assert not list((place / "runs").rglob("error.txt"))


def write_cifar(root: Path) -> Path:
    """CIFAR-10's files with noise as training images, and a file of test images that cannot be read."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(1, 6):
        labels = [i % 10 for i in range(10_000)]
        batch = {"data": draw.integers(0, 256, (10_000, 3072), dtype=np.uint8), "labels": labels}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(b"these are no images")
    (folder / "batches.meta").write_bytes(pickle.dumps({}))
    return root


def test_no_test_image_is_read_before_the_end(place):
    """The file with the test images cannot be read: the search does not notice, as it holds training images out."""
    data = f"data_root={write_cifar(place / 'data')}"
    network = ["model=resnet8_cifar", "model_args.stem_stride=2", "data=cifar10_jpeg", "trainer=cpu", "logger=none"]
    more = ["--budget", "proxy", "budget.epochs=1", "budget.train_examples=100", "budget.test_examples=50", data]
    own = ["--space", "few", "--config-dir", "conf", "--trials", "1", "--name", "s", "--sampler", "random"]
    done = convrepro("search", *network, *more, *own, "--no-final", cwd=place)
    assert done.returncode == 0, done.stderr
    (trial,) = trials_in(place)
    assert trial["state"] == "complete"
    with pytest.raises(ConvReproError, match="test_batch"):
        image_data(compose_config([*network, data])).setup()


@pytest.mark.exhaustive
def test_ctrl_c_ends_a_search_and_the_same_command_continues_it(place):
    command = [
        "-m",
        "convrepro.cli",
        *words("--sampler", "random", "--no-final", "recipe.epochs=50", "budget.epochs=50"),
    ]
    with Python(command, cwd=place, stdout=-3, stderr=-1, text=True) as process:
        wait(lambda: [t for t in trials_in(place) if t["accuracies"]], process)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    (trial,) = trials_in(place)
    assert trial["state"] == "running"


def test_a_search_whose_trials_all_fail_says_why(place):
    (place / "runs").mkdir()
    (place / "runs" / "adhoc").write_text("a file where folders of runs should be")
    done = convrepro(*words("--sampler", "random", trials=9), cwd=place)
    assert done.returncode == 2
    assert "the last 5 trials failed, the last one so: " in done.stderr
    assert "cannot be written (Not a directory)" in done.stderr
