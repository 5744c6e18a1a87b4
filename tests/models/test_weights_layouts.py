"""Checkpoints in the layouts of other projects, from networks that are drawn here: the outputs must be the same."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.build import build
from convrepro.ops import ShiftConv2d

STANDARD = {"name": "standard", "where": "dense_kxk"}
SHIFT = {"name": "shift", "where": "all", "variant": "q"}


def drawn(network: nn.Module) -> nn.Module:
    """The network in evaluation, with statistics and scales in its norms that no fresh network has."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What torchvision's older files hold: norms without a count of batches, DenseNet's layers with another dot."""
    old = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2", k): v for k, v in state.items()}
    return {key: value for key, value in old.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("resnet18", dict),
        ("resnet50", as_published),
        pytest.param("densenet121", dict, marks=pytest.mark.exhaustive),
        ("densenet121", as_published),
        pytest.param("vgg11_bn", as_published, marks=pytest.mark.exhaustive),
        ("alexnet", dict),
        ("squeezenet1_0", dict),
        ("squeezenet1_1", dict),
        ("googlenet", as_published),
    ],
)
def test_a_checkpoint_of_torchvision_gives_its_outputs(tmp_path, name, layout):
    torch.manual_seed(0)
    changed = {"transform_input": True} if name == "googlenet" else {}
    args = changed | {"init_weights": True, "aux_logits": True} if name == "googlenet" else {}
    theirs = drawn(getattr(torchvision.models, name)(weights=None, num_classes=10, **args))
    torch.save(layout(theirs.state_dict()), tmp_path / "net.pth")
    network, _ = build(name, conv=STANDARD, num_classes=10, weights=str(tmp_path / "net.pth"), model_args=changed)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.std() > 0
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_torchvision_is_converted(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121(weights=None, num_classes=10)
    torch.save(as_published(theirs.state_dict()), tmp_path / "net.pth")
    network, report = build("densenet121", conv=SHIFT, num_classes=10, weights=str(tmp_path / "net.pth"))
    assert len(report.replaced) == 121
    conv = network.features.denseblock4.denselayer16.conv2
    assert isinstance(conv, ShiftConv2d)
    assert torch.equal(conv.weight, theirs.features.denseblock4.denselayer16.conv2.weight)


def test_a_checkpoint_of_torchvision_with_other_classes_is_refused(tmp_path):
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ConvReproError, match=r"do not fit squeezenet1_1 .*: classifier.1.weight is \(7, 512, 1, 1\)"):
        build("squeezenet1_1", conv=STANDARD, num_classes=10, weights=str(tmp_path / "net.pth"))
    with pytest.raises(ConvReproError, match=r"do not fit densenet121 .*: it lacks features.conv0.weight"):
        build("densenet121", conv=STANDARD, num_classes=10, weights=str(tmp_path / "net.pth"))


def test_torchvisions_networks_for_other_images_and_without_a_classifier():
    for name, features in (("alexnet", (4096,)), ("squeezenet1_1", (512,)), ("googlenet", (1024,))):
        network, _ = build(name, conv=STANDARD, num_classes=0, in_chans=1)
        images = torch.randn(2, 1, 64, 64)
        assert network.eval()(images).shape == (2, *features)
        network.reset_classifier(3)
        logits = network(images)
        assert logits.shape == (2, 3)
        assert torch.equal(network.forward_head(network.forward_features(images)), logits)
        with pytest.raises(ConvReproError, match="global_pool='max'"):
            network.reset_classifier(3, "max")
    with pytest.raises(ConvReproError, match="transform_input=True is for in_chans=3"):
        build("googlenet", conv=STANDARD, num_classes=3, in_chans=1, model_args={"transform_input": True})


def published_resnet(blocks: int) -> dict[str, Tensor]:
    """The keys of the published CIFAR ResNets: convolutions and norms by stage and block, no keys for shortcuts."""
    state: dict[str, Tensor] = {}

    def conv_norm(conv: str, norm: str, in_channels: int, channels: int) -> None:
        state[f"{conv}.weight"] = torch.randn(channels, in_channels, 3, 3) * (2 / (9 * in_channels)) ** 0.5
        state[f"{norm}.weight"], state[f"{norm}.bias"] = 0.5 + torch.rand(channels), 0.1 * torch.randn(channels)
        state[f"{norm}.running_mean"] = 0.1 * torch.randn(channels)
        state[f"{norm}.running_var"] = 0.5 + torch.rand(channels)

    conv_norm("conv1", "bn1", 3, 16)
    in_channels = 16
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            conv_norm(f"{name}.conv1", f"{name}.bn1", in_channels, channels)
            conv_norm(f"{name}.conv2", f"{name}.bn2", channels, channels)
            in_channels = channels
    state["linear.weight"], state["linear.bias"] = torch.randn(10, 64) / 8, torch.randn(10)
    return state


def published_forward(x: Tensor, state: Mapping[str, Tensor], blocks: int) -> Tensor:
    """Those networks in evaluation, from their description; every second position and zeros on either side, as a
    shortcut."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        scale, shift, mean, var = (state[f"{norm}.{w}"] for w in ("weight", "bias", "running_mean", "running_var"))
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        return F.batch_norm(x, mean, var, scale, shift)

    x = conv_norm(x, "conv1", "bn1").relu()
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            y = conv_norm(y, f"{name}.conv2", f"{name}.bn2")
            quarter = (channels - x.shape[1]) // 2
            x = (y + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, quarter, quarter))).relu()
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize("count", [True, False], ids=["with counts of batches", "without"])
@pytest.mark.parametrize(("name", "blocks"), [("resnet20_cifar", 3), ("resnet56_cifar", 9)])
def test_a_published_cifar_resnet_gives_its_outputs(tmp_path, name, blocks, count):
    torch.manual_seed(0)
    state = published_resnet(blocks)
    counts = {key.replace("running_var", "num_batches_tracked"): torch.tensor(9) for key in state if "_var" in key}
    wrapped = {f"module.{key}": value for key, value in {**state, **(counts if count else {})}.items()}
    path: Path = tmp_path / "net.th"
    torch.save({"state_dict": wrapped, "best_prec1": 91.73}, path, _use_new_zipfile_serialization=False)
    network, _ = build(name, conv=STANDARD, num_classes=10, weights=str(path))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = published_forward(images, state, blocks)
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-4)
