"""A run is what determines its result: nothing else is taken for it, and no other spelling of it is another run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convrepro.cli.main import main
from convrepro.errors import ConvReproError
from convrepro.runs.identity import Identity, former_digest, named
from support.small_runs import MNIST_FC, train

ONE = [*MNIST_FC, "recipe.epochs=1"]
#: Two classes of images of 8 pixels in ImageNet's layout, as a network for MNIST takes them in colour.
FOLDERS = [
    "data=imagenet",
    "data.num_classes=2",
    "data.image_size=8",
    "model=resnet10t",
    "recipe.augment.crop_padding=0",
]
FOLDERS += ["recipe.batch_size=4", "recipe.epochs=1", "trainer=cpu", "trainer.num_workers=0", "logger=none"]


def image_folder(root: Path, shade: int, images: int = 4) -> Path:
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = np.full((10, 10, 3), shade + number + 40 * (label == "b"), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def results(runs: Path) -> list[Path]:
    return sorted(runs.rglob("result.json"))


def test_other_images_are_another_run(tmp_path):
    one, two = image_folder(tmp_path / "A", 0), image_folder(tmp_path / "B", 90, images=5)
    told: list[str] = []
    train([*FOLDERS, f"data.root={one}"], tmp_path / "runs", told.append)
    train([*FOLDERS, f"data.root={two}"], tmp_path / "runs", told.append)
    assert not any("skipped" in line for line in told)
    assert len(results(tmp_path / "runs")) == 2
    moved = shutil.copytree(one, tmp_path / "C")
    train([*FOLDERS, f"data.root={moved}"], tmp_path / "runs", told.append)
    assert "skipped" in told[-1], "the same images elsewhere are the same run"
    assert len(results(tmp_path / "runs")) == 2


def test_a_sweep_over_places_runs_each(tmp_path, monkeypatch, capsys):
    roots = image_folder(tmp_path / "A", 0), image_folder(tmp_path / "B", 90, images=5)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", "-m", *FOLDERS, f"data.root={roots[0]},{roots[1]}", f"runs={tmp_path / 'runs'}"])
    assert stop.value.code == 0, capsys.readouterr()
    assert len(results(tmp_path / "runs")) == 2


def test_other_content_of_starting_weights_is_another_run(tmp_path):
    train(ONE, tmp_path / "one")
    train([*ONE, "seed=1"], tmp_path / "two")
    (first,), (second,) = (list((tmp_path / name).rglob("last.ckpt")) for name in ("one", "two"))
    weights = tmp_path / "ck.pth"
    evaluated = []
    for checkpoint in (first, second):
        shutil.copy(checkpoint, weights)
        evaluated.append(train([*MNIST_FC, "train=false", f"weights={weights}"], tmp_path / "runs"))
    assert evaluated[0]["metrics"] != evaluated[1]["metrics"]
    assert len(results(tmp_path / "runs")) == 2


def test_a_checkpoint_of_an_edited_recipe_is_not_continued(tmp_path):
    """As when the recipe's file was edited after the run was killed."""
    train(ONE, tmp_path)
    (record,) = results(tmp_path)
    record.unlink()
    checkpoint = record.with_name("last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    for key, value in (("label_smoothing", 0.1), ("epochs", 7)):
        changed = json.loads(json.dumps(saved["settings"]["config"]))
        changed["recipe"][key] = value
        torch.save({**saved, "settings": {**saved["settings"], "config": changed}}, checkpoint)
        with pytest.raises(ConvReproError, match=rf"another protocol: recipe\.{key} was {value} and is"):
            train(ONE, tmp_path)


def test_precision_is_part_of_a_run_and_execution_is_not_swept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *ONE, f"runs={tmp_path / 'runs'}"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "trainer.precision=32-true,bf16-mixed"])
    assert stop.value.code == 0
    found = [json.loads(path.read_text())["config"]["trainer"]["precision"] for path in results(tmp_path / "runs")]
    assert sorted(found) == ["32-true", "bf16-mixed"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "trainer.num_workers=0,1"])
    assert stop.value.code == 2
    assert "trainer.num_workers=1 is the same run as another of the sweep" in capsys.readouterr().err


def test_spellings_of_one_configuration_are_one_run(tmp_path):
    base = [*MNIST_FC, "conv=shift", "recipe.epochs=1"]
    spellings = ["conv.bits=paper", "++conv.bits=paper", "recipe.optimizer.lr=1e-2", "hydra.verbose=true"]
    told: list[str] = []
    for spelling in (*spellings, "model_args={}", "seed=0", "trainer.num_workers=1"):
        train([*base, spelling], tmp_path, told.append)
    assert len(results(tmp_path)) == 1
    assert sum("skipped" in line for line in told) == 6


def test_weights_that_are_not_finite_are_not_evaluated(tmp_path):
    train(ONE, tmp_path / "one")
    (checkpoint,) = (tmp_path / "one").rglob("last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    next(iter(saved["state_dict"].values())).view(-1)[0] = float("nan")
    torch.save(saved, tmp_path / "broken.ckpt")
    with pytest.raises(ConvReproError, match=r"broken\.ckpt hold values that are not finite"):
        train([*MNIST_FC, "train=false", f"weights={tmp_path / 'broken.ckpt'}"], tmp_path / "runs")
    assert not results(tmp_path / "runs")


def test_a_changed_budget_says_so(tmp_path):
    told: list[str] = []
    train([*ONE, "budget.epochs=1"], tmp_path, told.append)
    assert re.search(r"\(paper, changed\)", told[0])


def test_runs_of_older_versions_are_found_under_their_names(tmp_path):
    """Those were named by the text of their overrides, and kept no protocol."""
    overrides = [*ONE, f"runs={tmp_path}"]
    made = train(ONE, tmp_path)
    (record,) = results(tmp_path)
    texts = [o for o in overrides if o.startswith("budget.")] + named(overrides)
    former = Identity("adhoc", f"deepshift_mnist_fc-standard-{former_digest(texts)}", 0, "paper")
    folder = former.folder(tmp_path)
    folder.parent.mkdir(parents=True)
    record.parent.rename(folder)
    shutil.rmtree(record.parents[1])
    (folder / "result.json").write_text(json.dumps({key: value for key, value in made.items() if key != "protocol"}))
    told: list[str] = []
    again = train(ONE, tmp_path, told.append)
    assert again["metrics"] == made["metrics"]
    assert "skipped" in told[-1]
