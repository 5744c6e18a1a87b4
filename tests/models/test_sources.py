"""Networks by name: torchvision's, and those of a user's factories."""

import pytest
import torch
import torchvision

from convrepro.config import plugins
from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.models.build import build
from convrepro.models.sources import create, list_models
from support.outside import own_registry

pytestmark = pytest.mark.unit

STANDARD = {"name": "standard", "where": "dense_kxk"}


@pytest.fixture
def _plugin(monkeypatch, tmp_path):
    monkeypatch.setenv(plugins.PLUGINS, "factories_a")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "factories_a.py").write_text(
        "number = 3\n"
        "def text(num_classes, in_chans): return 'network'\n"
        "def picky(num_classes, in_chans, depth: int): raise ValueError('depth is odd')\n"
    )
    with own_registry():
        yield


def test_every_classifier_of_torchvision_is_listed_and_no_detector():
    names = list_models("torchvision:*")
    assert {"torchvision:resnet18", "torchvision:vit_b_16", "torchvision:inception_v3"} <= set(names)
    assert not [name for name in names if "rcnn" in name or "deeplab" in name]
    assert list_models("torchvision:shufflenet*x1_0") == ["torchvision:shufflenet_v2_x1_0"]


@pytest.mark.parametrize(("name", "side"), [("resnet18", 32), ("mobilenet_v3_small", 32), ("googlenet", 64)])
def test_a_network_of_torchvision_has_the_classes_and_channels_of_the_data(name, side):
    network = create(f"torchvision:{name}", 7, 1, {})
    for mode in (True, False):
        assert network.train(mode)(torch.zeros(2, 1, side, side)).shape == (2, 7)


@pytest.mark.heavy
def test_weights_of_torchvision_are_loaded_and_converted(tmp_path):
    dense = torchvision.models.resnet18(num_classes=5)
    torch.save(dense.state_dict(), tmp_path / "resnet18.pth")
    conv = {"name": "low_rank", "where": "dense_kxk", "rank": 1.0}
    network, report = build("torchvision:resnet18", conv=conv, num_classes=5, weights=str(tmp_path / "resnet18.pth"))
    assert len(report.replaced) == 16
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(images), dense.eval()(images), rtol=1e-3, atol=1e-3)


def test_auxiliary_classifiers_of_a_checkpoint_are_left_out(tmp_path):
    dense = torchvision.models.googlenet(num_classes=5, init_weights=False)
    torch.save(dense.state_dict(), tmp_path / "googlenet.pth")
    weights = str(tmp_path / "googlenet.pth")
    network, _ = build("torchvision:googlenet", conv=STANDARD, num_classes=5, weights=weights)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(images), dense.eval()(images))


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("torchvision:resnet17", {}, "torchvision has no classifier 'resnet17'; did you mean resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "torchvision has no classifier 'fasterrcnn_resnet50_fpn'"),
        (
            "torchvision:resnet18",
            {"weights": "DEFAULT"},
            "model_args.weights cannot be given: give a checkpoint by w",
        ),
        ("torchvision:resnet18", {"depth": 3}, "model torchvision:resnet18 cannot be built with num_classes=5"),
        ("os:system", {}, "model 'os:system' is a function of the module os, which belongs to no plugin"),
        (
            "factories_a:nothing",
            {},
            "model factories_a:nothing: nothing does not exist in factories_a; write module:f",
        ),
        ("factories_a:number", {}, "model factories_a:number: number is not a function in factories_a"),
        (
            "factories_a.part:build",
            {},
            "model factories_a.part:build: factories_a.part cannot be imported: ModuleN",
        ),
        ("factories_a:text", {}, "model factories_a:text must return a torch.nn.Module; it returns a str"),
        (
            "factories_a:picky",
            {},
            "model factories_a:picky cannot be built with num_classes=5, in_chans=3: picky() m",
        ),
        ("factories_a:picky", {"depth": 3}, "in_chans=3, depth=3: depth is odd"),
    ],
)
@pytest.mark.usefixtures("_plugin")
def test_what_is_wrong_with_a_model_is_one_sentence(name, arguments, says):
    with pytest.raises(ConvReproError) as error:
        build(name, conv=STANDARD, num_classes=5, model_args=arguments)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["a:b:c", ":b", "a:", "a/b:c", "a:b.c", "a:b/../c"])
def test_a_text_that_is_no_models_name_is_rejected(name):
    with pytest.raises(ConvReproError, match=r"must be a model's name, such as resnet18, torchvision:resnet18 or my_p"):
        compose_config([f"model={name}"])
