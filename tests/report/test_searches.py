"""Searches by several samplers side by side; the trials are made up here."""

import csv
import json
import random
from pathlib import Path

import pytest

from convrepro.cli.command import execute
from convrepro.config.paths import ROOT
from convrepro.errors import ConvReproError
from convrepro.report.plots.files import read_digest
from convrepro.report.searches import curve, read, write

pytestmark = pytest.mark.unit

DENSE = 1000
SETTINGS = {"model": "resnet8_cifar", "data": "cifar10-jpeg", "space": {"name": "few"}, "max_macs": 800}
SETTINGS |= {"max_params": None, "budget": "proxy", "holdout": 0.2, "halving": False}


def trial(number: int, top1: float, macs: int, state: str = "complete") -> dict:
    whole = state == "complete"
    return {
        "number": number,
        "state": state,
        "params": {},
        "system_attrs": {},
        "macs": macs,
        "params_count": 1,
        "excess": 0.0 if state != "infeasible" else 0.5,
        "accuracies": {},
        "top1": top1 if whole else None,
        "worker": "pid 1",
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:00:01+00:00",
    }


def search(folder: Path, sampler: str, seed: int, trials: int = 12, **settings: object) -> Path:
    """The file of a search with trials by chance, every fourth of which breaks a constraint."""
    draw = random.Random(f"{sampler} {seed}")
    states = ["infeasible" if number % 4 == 3 else "complete" for number in range(trials)]
    made = [trial(n, draw.uniform(10, 90), draw.randrange(100, 900), state) for n, state in enumerate(states)]
    content = {
        "search": f"resnet8_cifar/{sampler}{seed}",
        "settings": {**SETTINGS, "sampler": sampler, "seed": seed, **settings},
        "dense": {"macs": DENSE, "params": 1},
        "front": [],
        "trials": made,
    }
    path = folder / f"{sampler}{seed}-trials.json"
    path.write_text(json.dumps(content))
    return path


def area(trials: list[dict]) -> float:
    """The share of the rectangle that is less accurate and costs more than one of the trials, in percent, by counting
    the columns of MACs one by one.
    """
    columns = (max((t["top1"] for t in trials if t["top1"] and t["macs"] <= macs), default=0) for macs in range(DENSE))
    return sum(columns) / DENSE


def test_the_area_below_the_front_grows_trial_by_trial(tmp_path):
    path = search(tmp_path, "random", 0)
    (record,) = read([path])
    found = curve(record, 100)
    counted = [t for t in json.loads(path.read_text())["trials"] if t["state"] == "complete"]
    assert found == pytest.approx([area(counted[: i + 1]) for i in range(len(counted))], abs=1e-3)
    assert list(found) == sorted(found)


def test_the_command_compares_samplers_over_their_seeds(tmp_path, capsys):
    files = [search(tmp_path, sampler, seed) for sampler in ("random", "nsga2") for seed in (0, 1, 2)]
    files.append(search(tmp_path, "tpe", 0, trials=5))
    assert execute(["search", "--compare", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[:4]] == ["sampler", "nsga2", "random", "tpe"]
    rows = list(csv.DictReader((tmp_path / "out" / "samplers.csv").open()))
    assert len(rows) == 7 * 4, "as many trials as all of them have"
    text = (tmp_path / "out" / "samplers.md").read_text()
    assert "4 trials each" in text
    assert "No test image was read" in text
    ends = [float(row["hypervolume"]) for row in rows if row["sampler"] == "random" and row["trial"] == "4"]
    assert f"| random | {sum(ends) / 3:.2f} |" in text
    assert (tmp_path / "out" / "samplers.svg").read_text().count('id="curve-') == 3


def test_what_cannot_be_compared_is_a_sentence(tmp_path, capsys):
    first = search(tmp_path, "random", 0)
    with pytest.raises(ConvReproError, match="its budget is paper, not proxy; give searches that differ in sampler"):
        read([first, search(tmp_path, "nsga2", 0, budget="paper")])
    with pytest.raises(ConvReproError, match="two searches by random with seed 0; give each once"):
        read([first, first])
    with pytest.raises(ConvReproError, match="a search without a trained trial cannot be compared"):
        read([first, search(tmp_path, "tpe", 0, trials=0)])
    with pytest.raises(ConvReproError, match=r"none.json does not exist|No such file"):
        read([tmp_path / "none.json"])
    assert execute(["search", "model=resnet18", "--compare", str(first)]) == 2
    assert "model=resnet18 has no effect with --compare" in capsys.readouterr().err


def test_the_example_is_what_the_command_makes_of_its_searches(tmp_path):
    folder = ROOT / ".github" / "examples" / "search_resnet8"
    found = read(sorted(folder.glob("*-trials.json")))
    assert len(found) == 10
    for path in write(found, tmp_path):
        committed = folder / path.name
        if path.suffix == ".svg":
            assert read_digest(committed) == read_digest(path)
        else:
            assert committed.read_text() == path.read_text()
