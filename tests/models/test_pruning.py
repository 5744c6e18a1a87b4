"""Filters that are removed: which ones, how many, and that the network is then that of the filters that are left."""

import random
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from convrepro.complexity import count
from convrepro.config.compose import compose_config
from convrepro.config.schema import Prune
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from convrepro.models.filters import Gradients
from convrepro.models.pruning import prune, take_shapes, whole

pytestmark = pytest.mark.unit


class Chain(nn.Module):
    """Three convolutions, of which the last two are added, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc((self.bn2(self.conv2(x)) + self.conv3(x)).relu().mean((2, 3)))


IMAGE = torch.zeros(1, 3, 10, 10)


def chain(seed: int = 0) -> Chain:
    """A chain with random weights, scales and statistics."""
    torch.manual_seed(seed)
    network = Chain()
    for norm in (network.bn1, network.bn2):
        for values in (norm.weight.data, norm.running_var):
            values.uniform_(0.5, 2)
        for values in (norm.bias.data, norm.running_mean):
            values.normal_()
    return network.eval()


def pruned(network: nn.Module, by: str = "l1", gradients: Gradients | None = None, **words: object) -> str:
    return prune(network, Prune(by=by, **words), whole(network, IMAGE), IMAGE, seed=0, gradients=gradients)


def silenced(network: Chain, first: list[int], second: list[int]) -> Chain:
    """The same function as the network without these filters: their outputs are zero after norm and addition."""
    with torch.no_grad():
        for channel in first:
            network.bn1.weight[channel] = network.bn1.bias[channel] = 0
        for channel in second:
            network.bn2.weight[channel] = network.bn2.bias[channel] = 0
            network.conv3.weight[channel], network.conv3.bias[channel] = 0, 0
    return network


@pytest.mark.parametrize("seed", range(4))
def test_a_pruned_network_computes_what_the_rest_of_its_filters_do(seed):
    """Which filters have the smallest absolute sums is found here by hand; those of conv2 and conv3 are added."""
    network, own = chain(seed), chain(seed)
    first = own.conv1.weight.abs().sum((1, 2, 3)).argsort()[:4].tolist()
    added = own.conv2.weight.abs().sum((1, 2, 3)) + own.conv3.weight.abs().sum((1, 2, 3))
    second = added.argsort()[:6].tolist()
    said = pruned(network, ratio=0.5)
    assert "10 filters removed in 2 groups of layers" in said
    assert network.conv1.weight.shape == (4, 3, 3, 3)
    assert network.conv2.weight.shape == (6, 4, 3, 3)
    assert network.fc.weight.shape == (5, 6)
    images = torch.randn(3, 3, 10, 10)
    with torch.no_grad():
        torch.testing.assert_close(network(images), silenced(own, first, second)(images), rtol=1e-5, atol=1e-5)


def kept_first(network: Chain, own: Chain) -> list[int]:
    """The filters of conv1 that are left, by their weights."""
    return [next(i for i in range(8) if torch.equal(own.conv1.weight[i], filter_)) for filter_ in network.conv1.weight]


def test_batch_norms_scale_decides():
    network, own = chain(), chain()
    pruned(network, "bn_scale", ratio=0.25, include=["conv1"])
    assert set(range(8)) - set(kept_first(network, own)) == set(own.bn1.weight.abs().argsort()[:2].tolist())
    layers = {"conv": nn.Conv2d(3, 4, 3), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(4, 2)}
    with pytest.raises(ConvReproError, match=r"needs a batch norm after conv; exclude the layer"):
        pruned(nn.Sequential(OrderedDict(layers)), "bn_scale", ratio=0.5)


def test_the_loss_decides_to_first_order():
    """Taylor's score is compared with the change of the loss itself where a filter is scaled down a little."""
    network, own = chain(), chain()
    images, labels = torch.randn(16, 3, 10, 10), torch.randint(5, (16,))

    def loss(network: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(network(images), labels)

    changes = []
    for channel in range(8):
        scaled = chain().double()
        with torch.no_grad():
            scaled.conv1.weight[channel] *= 1 - 1e-6
            changes.append(float(nn.functional.cross_entropy(scaled(images.double()), labels)))
    with torch.no_grad():
        reference = float(nn.functional.cross_entropy(chain().double()(images.double()), labels))
    least = sorted(range(8), key=lambda channel: abs(changes[channel] - reference))[:3]
    pruned(network, "taylor", ratio=3 / 8, include=["conv1"], gradients=lambda network: loss(network).backward())
    assert set(range(8)) - set(kept_first(network, own)) == set(least)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_chance_decides_by_the_seed():
    def kept(seed: int) -> list[int]:
        network = chain()
        prune(network, Prune(by="random", ratio=0.5), whole(network, IMAGE), IMAGE, seed=seed)
        return kept_first(network, chain())

    assert kept(1) == kept(1)
    assert len({tuple(kept(seed)) for seed in range(6)}) > 3


NETWORKS = [
    "vgg16_cifar",
    "resnet20_cifar",
    "model=resnet20_cifar model_args.shortcut=conv",
    "deepshift_mobilenet_v2_cifar",
    "mobilenet_v1_cifar",
    *(pytest.param(name, marks=pytest.mark.heavy) for name in ("resnet18", "mobilenetv3_small_100")),
    *(
        pytest.param(name, marks=pytest.mark.exhaustive)
        for name in (
            "densenet121",
            "efficientnet_b0",
            "regnetx_002",
            "torchvision:squeezenet1_1",
            "torchvision:googlenet",
        )
    ),
]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.heavy
def test_networks_reach_their_target_and_train(name):
    """The MACs that were predicted when the ratio was sought are those that fvcore counts afterwards."""
    words = name.split() if " " in name else [f"model={name}"]
    words += ["data=cifar10", "conv=standard"]
    dense, _ = build_network(compose_config(words))
    network, report = build_network(compose_config([*words, "prune=l1", "prune.macs=0.6"]))
    size = (3, 32, 32)
    left = count(network, size).total("conv_fc") / count(dense, size).total("conv_fc")
    assert 0.5 < left <= 0.6
    assert f"{100 * float(left):.1f} % of the MACs" in report.summary()
    network.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_parameters_are_a_target_too_and_numbers_of_filters_multiples():
    words = ["model=vgg16_cifar", "data=cifar10", "prune=l1", "prune.params=0.3", "prune.multiple_of=8"]
    network, _ = build_network(compose_config(words))
    dense, _ = build_network(compose_config(words[:2]))
    left = sum(p.numel() for p in network.parameters()) / sum(p.numel() for p in dense.parameters())
    assert 0.27 < left <= 0.3
    assert all(m.out_channels % 8 == 0 for m in network.modules() if isinstance(m, nn.Conv2d))


def test_how_many_filters_go_depends_on_no_weight():
    def shapes(seed: int, by: str) -> list[torch.Size]:
        torch.manual_seed(seed)
        words = ["model=resnet8_cifar", "data=cifar10", f"prune={by}", "prune.macs=0.4", f"seed={seed}"]
        return [p.shape for p in build_network(compose_config(words))[0].parameters()]

    assert shapes(0, "l1") == shapes(1, "bn_scale") == shapes(2, "random") == shapes(3, "taylor")


def test_layers_have_ratios_of_their_own():
    layers = "[{include: features.0, ratio: 0.5}, {include: [features.24, features.27], ratio: 0.25}]"
    words = ["model=vgg16_cifar", "data=cifar10", "prune=l1", f"prune.layers={layers}"]
    network, _ = build_network(compose_config(words))
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [32, 64, 128, 128, 256, 256, 256, 384, 384, 512, 512, 512, 512]


@pytest.mark.heavy
def test_a_filter_that_the_network_cannot_lose_stays():
    """The shortcuts of option A add a stage to the next with zeros in its place, which ties their channels."""
    _, report = build_network(compose_config(["model=resnet20_cifar", "data=cifar10", "prune=l1", "prune.ratio=0.5"]))
    assert "in 9 groups of layers" in report.summary()
    assert report.summary().endswith("kept those of conv1: the network does not run without")
    words = ["model=resnext50_32x4d", "prune=l1", "prune.ratio=0.5", "data=cifar10", "prune.include=[layer1.0.conv2]"]
    with pytest.raises(ConvReproError, match=r"layer1.0.conv2 has 32 groups|leave no convolution"):
        build_network(compose_config(words))


def test_a_state_dict_gives_a_network_its_sizes():
    network = chain()
    pruned(network, ratio=0.5)
    other = chain(1)
    assert take_shapes(other, network.state_dict())
    other.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 10, 10)
    assert torch.equal(other(images), network(images))
    assert (other.conv2.in_channels, other.conv2.out_channels, other.fc.in_features) == (4, 6, 6)
    assert not take_shapes(other, network.state_dict())


MISTAKES = {
    "prune=l1": "prune.by=l1 needs an amount: prune.ratio, prune.macs, prune.params or prune.layers",
    "prune=l1 prune.ratio=1": "prune.ratio=1 must be below 1.0 or null",
    "prune=l1 prune.macs=0": "prune.macs=0 must be above 0.0 or null",
    "prune=l1 prune.macs=0.5 prune.ratio=0.1": "prune.macs=0.5 and prune.ratio are both given; give one of them",
    "prune.macs=0.5": "prune.macs=0.5 needs a score: prune=l1, bn_scale, taylor or random",
    "prune=l2": "prune=l2 does not exist; valid: bn_scale, l1, none, random, taylor",
    "prune=l1 prune.ratio=0.5 conv=hetconv": "prune.by=l1 goes with conv=standard, and conv=hetconv is given",
    "prune=l1 prune.macs=0.001": "prune.macs=0.001 is out of reach: with the fewest filters",
    "prune=l1 prune.ratio=0.5 prune.include=[layer9]": "prune.include: 'layer9' matches no layer of the network",
    "prune=l1 prune.layers=[{include:layer9,ratio:0.5}]": "prune.layers[0].include: 'layer9' matches no layer",
    "prune=l1 prune.layers=[{include:conv1}]": "`prune.layers[0].ratio` is missing",
    "prune=l1 prune.ratio=0.5 prune.include=[conv1]": "prune: no filter of the network can be removed; prune.include",
    "prune=l1 prune.ratio=0.5 prune.exclude=['*']": "prune.include and prune.exclude leave no convolution",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_what_cannot_be_pruned_is_one_sentence(words):
    with pytest.raises(ConvReproError) as error:
        build_network(compose_config(["model=resnet8_cifar", "data=cifar10", *words.split()]))
    assert MISTAKES[words] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.heavy
def test_random_plans_of_layers_build():
    """Whatever ratios the layers of a network have, it runs, and has as many filters as asked for."""
    draw = random.Random(0)
    for _ in range(3):
        ratios = {f"layer{s}.{b}.conv1": draw.choice([0, 0.1, 0.5, 0.99]) for s in (1, 2, 3) for b in (0, 1, 2)}
        layers = ", ".join(f"{{include: {name}, ratio: {ratio}}}" for name, ratio in ratios.items())
        words = ["model=resnet20_cifar", "data=cifar10", "prune=l1", f"prune.layers=[{layers}]"]
        network, _ = build_network(compose_config(words))
        for name, ratio in ratios.items():
            channels = {"1": 16, "2": 32, "3": 64}[name[5]]
            assert abs(network.get_submodule(name).out_channels - max(1, channels * (1 - ratio))) <= 0.5
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
