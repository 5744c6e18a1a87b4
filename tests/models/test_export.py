"""Networks for inference give what they were made from: operators resolved, norms folded, files written and run."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from convrepro.cli.main import main
from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from convrepro.models.export import TOLERANCE, export, fuse
from convrepro.models.surgery import replace_convs
from convrepro.ops import (
    ConvOperator,
    GroupPointwise,
    HetConv2d,
    IGCV1Conv2d,
    LowPrecisionConv2d,
    LowPrecisionLinear,
    ShiftConv2d,
    ShiftLinear,
)
from convrepro.ops.deployed import ScaleAndRoundInput
from convrepro.ops.igc import ChannelShuffle
from convrepro.ops.power_of_two import sign_and_exponent
from convrepro.ops.quantizers import fixed_point
from support.operator_cases import CASES, OperatorCase
from support.versions import needs_norms_in_onnx

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
WORDS = [
    {"padding": 1},
    {"padding": 1, "stride": 2, "bias": False},
    {"kernel_size": (3, 5), "stride": (2, 1), "dilation": (1, 2)},
    {"padding": (3, 1), "padding_mode": "reflect"},
]
LINEAR = [
    ShiftLinear(8, 6, activation=(8, 8)),
    LowPrecisionLinear(8, 6, precision="xnor"),
    LowPrecisionLinear(8, 6, precision="fixed", activation_bits=4),
    LowPrecisionLinear(8, 6, precision="ternary", bias=False),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def with_random_norms(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, as if trained: no norm is close to the identity, some scales are negative."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return network.eval()


def assert_same(network: nn.Module, fused: nn.Module, images: Tensor) -> None:
    """Of float64, in which other orders of the sums are far below the tolerance, in both memory formats."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = images.double().contiguous(memory_format=memory_format)
        with torch.inference_mode():
            expected, given = network(x), fused(x)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def keeps_its_weights(operator: nn.Module) -> bool:
    return isinstance(operator, ShiftConv2d | LowPrecisionConv2d) or getattr(operator, "secondary", "") == "sum"


@every_case
@pytest.mark.parametrize("words", WORDS, ids=str)
def test_an_operator_between_norms(case, words):
    channels = case.in_channels, case.out_channels
    network = nn.Sequential(
        nn.Conv2d(3, channels[0], 1), nn.BatchNorm2d(channels[0]), case.build(**words), nn.BatchNorm2d(channels[1])
    )
    network = with_random_norms(network.double())
    before = copy.deepcopy(network.state_dict())
    fused, report = fuse(network)
    assert_same(network, fused, torch.randn(2, 3, 9, 12))
    assert report.deployed == ["2"]
    assert report.folded == (["1"] if keeps_its_weights(network[2]) else ["1", "3"])
    assert not [m for m in fused.modules() if isinstance(m, ConvOperator) and getattr(m, "secondary", "") != "sum"]
    assert not any(p.requires_grad for p in fused.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_form_that_was_asked_for_stays():
    plain, folded = (fuse(IGCV1Conv2d(48, 48, 3, primary_partitions=8, form=form))[0] for form in ("plain", "folded"))
    assert [type(layer) for layer in plain] == [nn.Conv2d, ChannelShuffle, nn.Conv2d, ChannelShuffle]
    assert [layer.groups for layer in folded] == [4, 1]  # 6 channels a group are merged to 12
    assert not fuse(HetConv2d(8, 8, 3, padding=1, form="plain"))[0].in_place
    assert fuse(HetConv2d(8, 8, 3, padding=1))[0].in_place


@pytest.mark.parametrize("layer", LINEAR, ids=repr)
def test_linear_operators(layer):
    layer = copy.deepcopy(layer).double()
    fused, _ = fuse(layer)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(fused(x), layer.eval()(x))
    assert not hasattr(fused, "deployed")


@pytest.mark.parametrize("variant", ["q", "ps", "v1"])
def test_weights_of_deepshift_stay_powers_of_two(variant):
    network = with_random_norms(nn.Sequential(ShiftConv2d(4, 6, 3, variant=variant), nn.BatchNorm2d(6)))
    fused, report = fuse(network)
    (conv,) = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert torch.equal(conv.weight, network[0].quantized_weight())
    sign_and_exponent(conv.weight)  # raises for anything else
    assert report.kept == {"1": "after a ShiftConv2d, whose weights must not change"}
    assert "norms kept: 1 after a ShiftConv2d" in report.summary()


def test_an_operator_that_has_no_scale_keeps_its_norm_and_says_why():
    class Plain(GroupPointwise):
        _scale_ = ConvOperator._scale_

    _, report = fuse(with_random_norms(nn.Sequential(Plain(4, 8, 3), nn.BatchNorm2d(8))))
    assert report.kept == {"1": "after a Plain, which defines no _scale_, so that nothing is folded into it"}


@pytest.mark.parametrize("precision", ["binary", "ternary", "fixed", "shared", "xnor"])
def test_codes_of_few_bits_stay(precision):
    layer = LowPrecisionConv2d(4, 6, 3, precision=precision)
    fused, _ = fuse(nn.Sequential(layer, nn.BatchNorm2d(6)))
    assert any(torch.equal(p, layer.quantized_weight()) for p in fused.parameters())


NETWORKS = [  # name, operator, knobs, norms that are folded, or all
    ("resnet18", "standard", {}, None),
    ("resnet18", "hetconv", {"p": 4}, None),
    ("mobilenetv2_100", "standard", {}, None),
    ("vgg16_cifar", "hetconv", {"p": 4}, None),
    ("vgg16_cifar", "gwc_pwc", {}, None),
    ("vgg16_cifar", "dwc_pwc", {}, None),
    ("resnet20_cifar", "shift", {}, 1),
    ("igcv1_plain_cifar", "standard", {}, None),
    ("resnetv2_50", "standard", {}, 32),  # its stem and shortcuts have none; each block begins with one
]


@pytest.mark.parametrize(("name", "operator", "knobs", "folded"), NETWORKS, ids=lambda value: str(value))
def test_networks(name, operator, knobs, folded):
    network = timm.create_model(name, num_classes=10)
    if operator != "standard":
        replace_convs(network, operator, "dense_kxk", knobs)
    network = with_random_norms(network.double())
    fused, report = fuse(network)
    assert_same(network, fused, torch.randn(2, 3, 32, 32))
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(report.folded) == (folded or len(norms))
    assert sorted(report.folded + list(report.kept)) == sorted(norms)


class Uses(nn.Module):
    """A convolution and a norm in ways that forbid to fold one into the other, and one in which it may be."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3, affine=how != "no affine", track_running_stats=how != "no statistics")
        if how == "norm of two names":
            self.alias = self.bn
        if how == "hook":
            self.conv.register_forward_hook(lambda module, inputs, output: output.relu())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "output used twice":
            return self.bn(y).relu() + y
        if self.how == "convolution called twice":
            return self.bn(y) + self.conv(x.relu())
        if self.how == "norm called twice":
            return self.bn(y) + self.bn(x)
        if self.how == "weight read":
            return self.bn(y) + self.conv.weight.sum()
        if self.how == "norm first":
            return self.conv(self.bn(x))
        if self.how == "norm of two names":
            return self.alias(y)
        if self.how == "norm not used":
            return y
        if self.how == "untraceable" and x.sum() > 1e9:
            return x
        return self.bn(y)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("output used twice", "after a convolution that is also used elsewhere"),
        ("convolution called twice", "after a convolution that is also used elsewhere"),
        ("norm called twice", "not after a convolution"),
        ("weight read", "after a convolution that is also used elsewhere"),
        ("norm first", "not after a convolution"),
        ("norm not used", "not reached by the tracing"),
        ("no statistics", "without running statistics"),
        ("hook", "with hooks on it or on its convolution"),
        ("untraceable", "in a network that cannot be traced (TraceError)"),
        ("no affine", None),
        ("norm of two names", None),
    ],
)
def test_only_pairs_are_folded(how, reason):
    network = Uses(how).double()
    if how != "no statistics":
        with_random_norms(network)
    fused, report = fuse(network)
    assert_same(network.eval(), fused, torch.randn(2, 3, 5, 6))
    assert report.kept == ({"bn": reason} if reason else {})
    assert report.folded == ([] if reason else ["bn"])


def test_the_activation_of_a_folded_norm_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.SiLU))
    network = with_random_norms(network.double())
    fused, report = fuse(network)
    assert report.folded == ["1"]
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert_same(network, fused, torch.randn(2, 3, 7, 7))


def test_a_module_in_two_places_stays_one():
    shared = CASES[1].build(in_channels=12, padding=1)
    fused, report = fuse(nn.Sequential(shared, nn.ReLU(), shared).double())
    assert fused[0] is fused[2]
    assert len(report.deployed) == 1


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_rounding_of_inputs_without_frexp_is_the_same(bits):
    limit = 2 ** (bits - 1) - 1
    powers = torch.exp2(torch.arange(-40, 41).float()) * limit
    beside = [powers.nextafter(torch.tensor(limit)) for limit in (0.0, torch.inf)]
    around = torch.cat((powers, *beside, powers * 0))
    x = around[:, None] * torch.cat((torch.ones(1), torch.rand(30) * 2 - 1))
    assert torch.equal(ScaleAndRoundInput(bits)(x), fixed_point(x, bits))
    assert torch.equal(ScaleAndRoundInput(bits, vectors=True)(x.view(4, -1, 31)), fixed_point(x, bits).view(4, -1, 31))


class Gallery(nn.Module):
    """Operators side by side, each with a norm: (B, 8, H, W) to (B, F), their outputs in a row."""

    def __init__(self, cases: list[OperatorCase]) -> None:
        super().__init__()
        self.cases = cases
        self.operators = nn.ModuleList(case.build(**WORDS[i % len(WORDS)]) for i, case in enumerate(cases))
        self.norms = nn.ModuleList(nn.BatchNorm2d(case.out_channels) for case in cases)
        self.linear = copy.deepcopy(nn.ModuleList(LINEAR))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([y.flatten(1) for y in self.outputs(x)], 1)

    def outputs(self, x: Tensor) -> list[Tensor]:
        layers = zip(self.cases, self.operators, self.norms, strict=True)
        maps = [norm(operator(x[:, : case.in_channels])) for case, operator, norm in layers]
        return maps + [linear(x[:, :8, 0, 0]) for linear in self.linear]


@pytest.mark.parametrize(
    ("suffix", "cases"),
    [pytest.param("onnx", CASES, id="onnx", marks=needs_norms_in_onnx), pytest.param("pt2", CASES[::6], id="pt2")],
)
def test_every_operator_in_a_file(tmp_path, suffix, cases):
    network = with_random_norms(Gallery(cases))
    path = tmp_path / f"all.{suffix}"
    done = export(network, torch.zeros(1, 8, 9, 12), path)
    assert done.difference < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    run = opened(path)
    for batch in (1, 3, 4):
        x = torch.randn(batch, 8, 9, 12)
        with torch.no_grad():
            expected = network.outputs(x)
            given = run(x).split([y[0].numel() for y in expected], 1)
        for name, one, other in zip([c.name for c in cases] + LINEAR, given, expected, strict=True):
            error = float((one - other.flatten(1)).abs().max() / other.abs().max())
            assert error < 1e-5, (name, error)


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def test_the_verb_writes_what_a_checkpoint_gives(tmp_path, capsys):
    words = ["model=igcv1_plain_cifar", "data=cifar10", "+model_args.depth=5"]
    network = with_random_norms(build_network(compose_config(words))[0])
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "net.ckpt")
    path = tmp_path / "net.onnx"
    with pytest.raises(SystemExit) as stop:
        main(["export", *words, f"weights={tmp_path / 'net.ckpt'}", "--to", str(path)])
    assert not stop.value.code
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened(path)(images), network(images), rtol=1e-4, atol=1e-4)
    assert "3 operators deployed, 4 norms folded" in capsys.readouterr().out


@needs_norms_in_onnx
@pytest.mark.exhaustive
def test_a_network_that_rounds_inputs_is_compared_as_far_as_it_is_determined(tmp_path):
    """A sum on the edge between two numbers falls to either side, and the layers behind multiply that."""
    torch.manual_seed(0)
    cfg = compose_config(["model=vgg16_cifar", "data=cifar10", "conv=low_precision", "conv.precision=xnor"])
    done = export(build_network(cfg)[0], torch.zeros(1, 3, 32, 32), tmp_path / "net.onnx")
    assert done.difference > TOLERANCE


EXPORTS = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has the latter alone


class Wrong(nn.Module):
    """Another function once it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * (1.01 if EXPORTS() else 1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.rand_like(x).flatten(1)


@pytest.mark.parametrize(
    ("network", "target", "message"),
    [
        (Wrong(), "kept.pt2", r"kept\.pt2 is not written: its output differs .* above 1\.0e-03"),
        (Noisy(), "kept.pt2", r"kept\.pt2: ValueError: two evaluations of the network differ"),
        (Uses("untraceable"), "kept.pt2", r"the network cannot be exported to .*kept\.pt2: "),
        (nn.Identity(), "net.pth", r"net\.pth must end in \.onnx or \.pt2"),
        (nn.Identity(), "nowhere/net.pt2", "nowhere is not a folder"),
    ],
)
def test_what_is_not_equal_or_not_possible_is_refused_and_nothing_is_touched(network, target, message, tmp_path):
    (tmp_path / "kept.pt2").write_text("of before")
    with pytest.raises(ConvReproError, match=message):
        export(network, torch.zeros(1, 3, 4, 4), tmp_path / target)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["of before"]


def test_missing_packages_are_told_before_anything_is_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stop:
        main(["export", "model=does_not_exist", "--to", str(tmp_path / "net.onnx")])
    assert stop.value.code == 2
    assert "needs onnxscript: pip install 'convrepro[export]'" in capsys.readouterr().err
