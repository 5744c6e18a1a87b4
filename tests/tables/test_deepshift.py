"""DeepShift's rows that load published checkpoints: which files, whose accuracies, and that the networks exist."""

from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import PurePosixPath

import pytest
import timm
import torch
import torchvision.models

from convrepro.tables import Row, Table, load_table

pytestmark = pytest.mark.unit

TABLES = ["cifar10_v1", "imagenet_v1", "imagenet_v5", "bits_imagenet_v5"]
#: Test errors (%) that the README of akamaster/pytorch_resnet_cifar10 gives for its checkpoints.
ERRORS = {20: "8.27", 32: "7.37", 44: "6.90", 56: "6.61", 110: "6.32", 1202: "6.18"}


def loading(table: Table) -> list[tuple[Row, dict[str, str]]]:
    rows = [(row, table.settings(row)) for row in table.to_run]
    return [(row, settings) for row, settings in rows if "weights" in settings]


def of_torchvision(model: str, settings: dict[str, str]) -> torchvision.models.WeightsEnum:
    (weights,) = (w for w in torchvision.models.get_model_weights(model) if w.url == settings["weights"])
    return weights


@pytest.mark.parametrize("name", TABLES)
def test_each_network_has_one_checkpoint_under_a_name_with_its_digits(name):
    files: dict[str, set[str]] = {}
    for _, settings in loading(load_table(f"deepshift/{name}")):
        files.setdefault(settings["model"], set()).add(settings["weights"])
        digits = PurePosixPath(settings["weights"]).stem.split("-")[-1]
        assert len(digits) == 8
        assert int(digits, 16)
        assert settings["model"] in timm.list_models()
    assert files
    assert all(len(urls) == 1 for urls in files.values())


@pytest.mark.parametrize("name", TABLES[1:])
def test_the_published_originals_are_those_that_torchvision_documents(name):
    table = load_table(f"deepshift/{name}")
    originals = 0
    for row, settings in loading(table):
        documented = of_torchvision(settings["model"], settings).meta["_metrics"]["ImageNet-1K"]
        if settings["conv"] == "standard":
            originals += 1
            for metric, key in (("top1", "acc@1"), ("top5", "acc@5")):
                exact = Decimal(str(documented[key])).quantize(Decimal("0.01"), ROUND_HALF_EVEN)
                assert row.published[metric].value == exact, row.id
    assert originals == {"imagenet_v1": 20, "imagenet_v5": 6, "bits_imagenet_v5": 0}[name]


def test_the_published_originals_on_cifar10_are_the_checkpoints_errors():
    table = load_table("deepshift/cifar10_v1")
    for layers, error in ERRORS.items():
        assert table.row(f"resnet{layers}_original").published["top1"].value == 100 - Decimal(error)


def test_only_googlenet_s_checkpoint_wants_its_images_transformed():
    for name in TABLES[1:]:
        for _, settings in loading(load_table(f"deepshift/{name}")):
            transformed = settings.get("model_args.transform_input") == "true"
            assert transformed == (settings["model"] == "googlenet"), settings


@pytest.mark.parametrize("model", ["alexnet", "densenet161", "googlenet", "resnet152", "squeezenet1_1", "vgg19_bn"])
def test_the_networks_have_the_parameters_of_the_checkpoints(model):
    with torch.device("meta"):
        count = sum(p.numel() for p in timm.create_model(model).parameters())
    documented = torchvision.models.get_model_weights(model).IMAGENET1K_V1.meta["num_params"]
    assert count == documented
