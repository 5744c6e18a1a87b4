"""The walk of operators through networks: each outcome on a real network, going on where it stopped, and the page."""

import json
import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from torch import Tensor, nn

from convrepro import complexity
from convrepro.cli.main import main
from convrepro.errors import ConvReproError
from convrepro.evidence import cores
from convrepro.evidence.coverage import _backward, attempt, cover, families, operators, smallest
from convrepro.evidence.coverage_record import RECORD, WORKS, crashes, read_record
from convrepro.models.build import build
from convrepro.models.sources import list_models
from convrepro.ops import OPERATORS, DepthwisePointwise
from convrepro.report.coverage import PAGE, render_page, write_page
from convrepro.runs import environment

NETWORKS = ["resnet20_cifar", "mobilenetv2_035", "convnext_atto", "test_vit"]


class Raising(DepthwisePointwise):
    """Raises something that no user should see."""

    def forward(self, x: Tensor) -> Tensor:
        raise IndexError("list index\n out of range")


class Detached(DepthwisePointwise):
    """Leaves one of its weights out of the training."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.dense_weight() + 0 * self.weight_1x1.sum(), stride=self.stride, padding=1)


class Exploding(DepthwisePointwise):
    """Has gradients that are no numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * (self.weight_1x1 * 0).sqrt().sum()


def walk(out: Path, networks: list[str], convs: list[str]) -> list[str]:
    """What a walk tells."""
    told: list[str] = []
    cover(networks, operators(convs), out, told.append)
    write_page(out)
    return told


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("coverage") / "coverage.json"
    walk(out, NETWORKS, ["standard", "hetconv", "dwc_pwc"])
    return out


def test_each_outcome_is_told(walked):
    networks = read_record(walked)["networks"]
    assert {name: {c: cell["outcome"] for c, cell in entry["cells"].items()} for name, entry in networks.items()} == {
        "resnet20_cifar": {"standard": "works", "hetconv": "works", "dwc_pwc": "works"},
        "mobilenetv2_035": {"standard": "works", "hetconv": "nothing to replace", "dwc_pwc": "nothing to replace"},
        "convnext_atto": {"standard": "works", "hetconv": "refused", "dwc_pwc": "works"},
        "test_vit": {"standard": "works", "hetconv": "nothing to replace", "dwc_pwc": "nothing to replace"},
    }
    assert "layer 'stages.1.downsample.1'" in networks["convnext_atto"]["cells"]["hetconv"]["reason"]


def test_a_refused_layer_may_be_kept(tmp_path):
    """IGCV1's eight partitions divide the channels of eight of the ten convolutions of cspnext_tiny; hetconv's P=4
    divides those of none of convnext_atto's three, whose kernels are even."""
    (line,) = walk(tmp_path / "c.json", ["cspnext_tiny"], ["igcv1"])
    assert "refused: with unfit=keep 8 layers replaced: layer 'stem.1.conv': primary_partitions=8" in line
    cell = read_record(tmp_path / "c.json")["networks"]["cspnext_tiny"]["cells"]["igcv1"]
    kept = build("cspnext_tiny", conv={"name": "igcv1", "where": "dense_kxk", "unfit": "keep"}, num_classes=10)[0]
    assert (cell["outcome"], cell["replaced"]) == ("refused", 8)
    assert cell["macs"] == complexity.count(kept, (3, 64, 64)).total("macs")


def test_several_processes_find_what_one_finds(walked, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "MANY", 2)
    walk(tmp_path / "coverage.json", NETWORKS, ["standard", "hetconv", "dwc_pwc"])
    assert (tmp_path / "coverage.json").read_bytes() == walked.read_bytes()


class Deadly(dict):
    """Ends the process that unpickles it, as the system does where memory is short."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_killed_process_ends_the_walk_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "MANY", 1)
    with pytest.raises(ConvReproError, match="was killed, most likely for lack of memory"):
        cover(["one_conv"], {"standard": Deadly(operators(["standard"])["standard"])}, tmp_path / "coverage.json")


def test_what_works_is_counted(walked):
    """ResNet-20 has 442,368 MACs in its first convolution, 640 in its classifier, and 40,108,032 between; HetConv with
    P=4 leaves 1/4 + 3/4 * 1/9 = 1/3 of those."""
    entry = read_record(walked)["networks"]["resnet20_cifar"]
    assert entry["macs"] == entry["cells"]["standard"]["macs"] == 442_368 + 40_108_032 + 640
    assert entry["cells"]["hetconv"]["macs"] == 442_368 + 40_108_032 // 3 + 640
    assert [entry["cells"][conv]["replaced"] for conv in ("standard", "hetconv")] == [0, 18]


def test_images_are_as_small_as_the_network_allows(walked):
    networks = read_record(walked)["networks"]
    sizes = {"resnet20_cifar": 32, "mobilenetv2_035": 64, "convnext_atto": 64, "test_vit": 160}
    assert {name: entry["input_size"] for name, entry in networks.items()} == {n: [3, s, s] for n, s in sizes.items()}


def test_the_record_says_where_it_is_from(walked):
    record = read_record(walked)
    (key,) = record["environments"]
    assert record["environments"][key]["versions"]["torch"] == version("torch")
    assert {cell["environment"] for entry in record["networks"].values() for cell in entry["cells"].values()} == {key}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Raising, "IndexError: list index out of range"),
        (Detached, "TrainingError: conv.weight_kxk has no finite gradient"),
        (Exploding, "TrainingError: conv.weight_1x1 has no finite gradient"),
    ],
)
def test_a_broken_operator_is_a_crash_until_it_is_repaired(broken, reason, tmp_path, monkeypatch, capsys):
    name, conv = "one_conv", "dwc_pwc"
    words = ["coverage", "--models", name, "--convs", f"standard,{conv}", "--out", str(tmp_path / "coverage.json")]
    with monkeypatch.context() as patch:
        patch.setitem(OPERATORS, conv, broken)
        with pytest.raises(SystemExit) as stop:
            main(words)
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"crash: {name} {conv}: {reason}\n"
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [[name, conv, "works:"]]


def test_a_broken_walk_goes_on_with_the_next_cell(tmp_path):
    out, told = tmp_path / "coverage.json", []

    def interrupted(line: str) -> None:
        told.append(line)
        raise KeyboardInterrupt

    configs = operators(["standard", "dwc_pwc", "gwc_pwc"])
    with pytest.raises(KeyboardInterrupt):
        cover(["one_conv"], configs, out, interrupted)
    told += walk(out, ["one_conv"], [*configs])
    assert [line.split()[1] for line in told] == ["standard", "dwc_pwc", "gwc_pwc"]
    assert walk(out, ["one_conv"], [*configs]) == []


@pytest.mark.parametrize("change", ["commit", "knob"])
def test_cells_of_other_code_or_knobs_are_walked_again(change, tmp_path):
    out = tmp_path / "coverage.json"
    walk(out, ["one_conv"], ["standard", "gwc_pwc"])
    record = json.loads(out.read_text())
    if change == "commit":
        (key,) = record["environments"]
        other = {"0ld": record["environments"][key] | {"commit": "0" * 40}}
        out.write_text(out.read_text().replace(f'"{key}"', '"0ld"'))
        assert read_record(out)["environments"].keys() == other.keys()
    else:
        record["operators"]["gwc_pwc"]["num_groups"] = 2
        out.write_text(json.dumps(record))
    again = [line.split()[1] for line in walk(out, ["one_conv"], ["standard", "gwc_pwc"])]
    assert again == (["standard", "gwc_pwc"] if change == "commit" else ["gwc_pwc"])
    assert len(read_record(out)["environments"]) == 1


def test_a_walk_leaves_the_sources_as_they_are_though_its_record_is_tracked(tmp_path, monkeypatch):
    records = ["coverage.json", "COVERAGE.md", "speed/a.json", "paper/results/a.json"]
    for name in (*records, "speed.yaml", "../environment.py"):
        path = tmp_path / "reproductions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    for name, dirty in {**dict.fromkeys(records, False), "speed.yaml": True}.items():
        (tmp_path / "reproductions" / name).write_text("new")
        assert environment.commit()[1] is dirty, name


def test_other_networks_are_added_to_the_record(tmp_path):
    out = tmp_path / "coverage.json"
    walk(out, ["resnet20_cifar"], ["standard"])
    walk(out, ["one_c*"], ["standard"])
    assert [(entry["family"], name) for name, entry in read_record(out)["networks"].items()] == [
        ("zoo.one_conv", "one_conv"),
        ("zoo.resnet_cifar", "resnet20_cifar"),
    ]


def test_a_cell_that_hangs_is_a_crash():
    outcome = {"outcome": "crash", "reason": "TimeoutError: not done after 1 s"}
    assert attempt(lambda: time.sleep(60), patience=1) == outcome


def test_every_network_has_a_family():
    found = families()
    names = [name for members in found.values() for name in members]
    assert len(names) == len(set(names))
    assert set(names) == {name for name in list_models() if not name.startswith("test_")}
    assert {"resnet", "vgg", "zoo.resnet_cifar"} <= found.keys()


def test_the_smallest_is_one_with_something_to_replace():
    assert smallest(["resnet32_cifar", "resnet20_cifar"]) == "resnet20_cifar"
    assert smallest(["mobilenetv2_035", "resnet18", "resnet34"]) == "resnet18"


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--models", "resnet81"], ["resnet81", "list models"]), (["--convs", "hetcon"], ["hetcon", "hetconv"])],
)
def test_a_mistake_is_told(words, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["coverage", *words, "--out", str(tmp_path / "coverage.json")])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 0}'])
def test_a_foreign_record_is_not_overwritten(text, tmp_path):
    out = tmp_path / "coverage.json"
    out.write_text(text)
    with pytest.raises(ConvReproError, match="coverage"):
        walk(out, ["resnet20_cifar"], ["standard"])
    assert out.read_text() == text


def test_the_page_has_totals_then_networks_then_each_reason_once(tmp_path):
    here = {"commit": "c0ffee", "dirty": True, "device": "cpu: some", "date": "2026-01-02"}
    here["versions"] = {"python": "3.11", "torch": "2", "timm": "1", "fvcore": "0"}
    even = "kernel_size=(2, 2) must be odd"

    def cell(outcome: str, **facts: object) -> dict[str, object]:
        return {"outcome": outcome, **facts, "environment": "e"}

    def network(family: str, **cells: dict[str, object]) -> dict[str, object]:
        return {"family": family, "input_size": [3, 64, 64], "macs": 9, "params": 9, "cells": cells}

    refused = cell("refused")
    record = {
        "schema": 1,
        "timm": "1",
        "smallest": {"a": "a1", "c": "c1"},
        "operators": {"het": {"name": "hetconv", "where": "all"}, "sep": {"name": "dwc_pwc", "where": "dense_kxk"}},
        "environments": {"e": here},
        "networks": {
            "a1": network(
                "a", het=cell("refused", reason=f"layer 'x.1': {even}"), sep=cell("works", replaced=3, macs=4)
            ),
            "b1": network(
                "b",
                het=refused | {"reason": f"layer 'y': {even}", "replaced": 2, "macs": 3},
                sep=cell("nothing to replace"),
            ),
            "b2": network("b", het=cell("crash", reason="KeyError: 'a|b'")) | {"input_size": [3, 32, 48]},
        },
    }
    page = render_page(record)
    lines = page.splitlines()
    totals = "3 networks, 5 cells: works 1, nothing to replace 1, refused 2, crash 1."
    assert f"{totals} 1 of timm's 2 families are missing so far." in lines
    assert "| het | all | 0 | 0 | 2 | 1 |" in lines
    assert "| sep | dense_kxk | 1 | 1 | 0 | 0 |" in lines
    assert "| a | a1 | 64x64 | refused [1] | works (3) |" in lines
    assert "| b | b1 | 64x64 | refused [1], keep (2) | — |" in lines
    assert "| b | b2 | 32x48 | crash [2] |  |" in lines
    assert [line for line in lines if line[:2] in ("1.", "2.", "3.")] == [f"1. {even}", "2. KeyError: 'a|b'"]
    assert (
        "- 2026-01-02, commit c0ffee with uncommitted changes, python 3.11, torch 2, timm 1, fvcore 0, cpu: some"
        in lines
    )
    assert crashes(record) == ["b2 het: KeyError: 'a|b'"]
    (tmp_path / "coverage.json").write_text(json.dumps(record))
    assert write_page(tmp_path / "coverage.json").read_text() == page


@pytest.mark.skipif(not RECORD.exists(), reason="no walk over all families has been committed yet")
def test_the_committed_record_has_no_crash_and_its_page_is_up_to_date():
    record = read_record()
    assert not crashes(record)
    assert RECORD.with_name(PAGE).read_text() == render_page(record)


def test_a_network_gets_images_with_the_channels_that_it_was_made_for(tmp_path):
    (line,) = walk(tmp_path / "c.json", ["deepshift_mnist_conv"], ["dwc_pwc"])
    assert WORKS in line
    assert read_record(tmp_path / "c.json")["networks"]["deepshift_mnist_conv"]["input_size"] == [1, 28, 28]


def test_an_encoder_that_gives_features_for_each_token_is_trained_on_their_mean():
    encoder = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.Flatten(2))
    _backward(encoder, (3, 16, 16))
    assert encoder[0].weight.grad.isfinite().all()
    assert encoder[0].weight.grad.any()
