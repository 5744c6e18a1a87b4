"""Names, arguments and checkpoints that `models.build` takes, and what it answers to those that it does not."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convrepro.errors import ConvReproError
from convrepro.models.build import build
from convrepro.ops import HetConv2d, LowRankConv2d, ShiftConv2d, SqueezeExcite

pytestmark = pytest.mark.unit

STANDARD = {"name": "standard", "where": "dense_kxk"}
HETCONV = {"name": "hetconv", "where": "dense_kxk", "p": 4, "arrangement": "contiguous"}
EXACT = HETCONV | {"p": 1}
SHIFT = {"name": "shift", "where": "all"}


@pytest.fixture(scope="module")
def float_network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar").eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def resnet20(conv: Mapping[str, object], weights: str | Path | None = None, **kwargs: object) -> nn.Module:
    network, _ = build("resnet20_cifar", conv=conv, num_classes=10, weights=weights and str(weights), **kwargs)
    return network.eval()


def assert_same_state(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v1_cifar"])
def test_standard_is_what_timm_creates(name):
    torch.manual_seed(7)
    plain = timm.create_model(name, num_classes=5, in_chans=1)
    torch.manual_seed(7)
    network, report = build(name, conv=STANDARD, num_classes=5, in_chans=1, init="fan_out")
    assert_same_state(network.state_dict(), plain.state_dict())
    assert not report.replaced


def test_operator_knobs_arguments_and_init_reach_the_network():
    network, report = build(
        "resnet20_cifar",
        conv=HETCONV | {"p": 2, "arrangement": "shifted"},
        num_classes=7,
        in_chans=1,
        init="fan_out",
        model_args={"drop_rate": 0.5, "se_reduction": 8},
    )
    conv = network.layer3[1].conv2
    assert (conv.p, conv.arrangement, network.head_drop.p) == (2, "shifted", 0.5)
    assert len(report.replaced) == 18
    assert conv.weight_kxk.std().item() == pytest.approx((2 / (64 / 2 * 9 + 64 / 2)) ** 0.5, rel=0.05)
    assert sum(isinstance(m, SqueezeExcite) for m in network.modules()) == 9
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_se_reduction_follows_each_replaced_convolution():
    network = resnet20(HETCONV, se_reduction=8)
    assert sum(isinstance(m, SqueezeExcite) for m in network.modules()) == 18


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet56", "resnet56_cifar"), ("vgg16_cifr", "vgg16_cifar"), ("mobilenet_v2_100", "mobilenetv2_100")],
)
def test_unknown_names_are_answered_with_near_ones(name, near):
    with pytest.raises(
        ConvReproError, match=rf"model '{name}' is neither in timm nor in the zoo; did you mean .*{near}"
    ):
        build(name, conv=STANDARD, num_classes=10)


def test_a_name_like_no_other_and_a_hub_name_are_unknown():
    for name in ("qqqqqqqq", "hf-hub:timm/resnet18.a1_in1k"):
        with pytest.raises(ConvReproError, match=f"model '{name}' is neither in timm nor in the zoo"):
            build(name, conv=STANDARD, num_classes=10)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "resnet18",
            {"depth": 3},
            "model resnet18 cannot be built with .*depth=3: .*unexpected keyword argument 'depth'",
        ),
        ("resnet20_cifar", {"blocks": 4}, "model resnet20_cifar cannot be built with .*blocks=4: "),
        ("vgg16_cifar", {"se_reduction": 7}, "se_reduction=7: reduction=7 must divide channels=64"),
        ("resnet18", {"pretrained": True}, "model_args.pretrained cannot be given: give a checkpoint by weights"),
        ("resnet18", {"num_classes": 3}, "model_args.num_classes cannot be given: the data set determines it"),
    ],
)
def test_arguments_that_the_model_rejects(name, args, message):
    with pytest.raises(ConvReproError, match=message):
        build(name, conv=STANDARD, num_classes=10, model_args=args)


class Module(L.LightningModule):
    """A LightningModule in the form of this project's: the network is its attribute `network`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.scale = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.scale * self.network(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.heavy
@pytest.mark.parametrize("conv", [HETCONV, SHIFT], ids=lambda c: c["name"])
def test_a_lightning_checkpoint_of_the_replaced_network(tmp_path, images, conv):
    network = resnet20(conv).train()
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(network), DataLoader(images, batch_size=2))
    (path,) = tmp_path.rglob("*.ckpt")
    restored = resnet20(conv, path)
    assert_same_state(restored.state_dict(), network.state_dict())
    assert torch.equal(restored(images), network.eval()(images))


@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [
        (".pt", lambda state: state),
        (".pth", lambda state: {"state_dict": state, "epoch": 3}),
        (".th", lambda state: {"best_prec1": 91.7, "state_dict": {f"module.{k}": v for k, v in state.items()}}),
        (".ckpt", lambda state: {"state_dict": {f"network._orig_mod.{k}": v for k, v in state.items()}}),
    ],
)
def test_a_float_checkpoint_is_loaded_and_converted(tmp_path, float_network, images, suffix, wrap):
    path = tmp_path / f"float{suffix}"
    torch.save(wrap(float_network.state_dict()), path)
    assert_same_state(resnet20(STANDARD, path).state_dict(), float_network.state_dict())

    network = resnet20(EXACT, path)
    assert isinstance(network.layer1[0].conv1, HetConv2d)
    torch.testing.assert_close(network(images), float_network(images), rtol=1e-4, atol=1e-5)

    network = resnet20(SHIFT, path)
    assert isinstance(network.conv1, ShiftConv2d)
    assert torch.equal(network.conv1.weight, float_network.conv1.weight)


def test_safetensors(tmp_path, float_network):
    path = tmp_path / "model.safetensors"
    save_file(float_network.state_dict(), path)
    assert_same_state(resnet20(STANDARD, path).state_dict(), float_network.state_dict())


@pytest.mark.parametrize(
    "conv",
    [
        HETCONV,
        {"name": "gwc_pwc", "where": "dense_kxk", "num_groups": 4},
        {"name": "dwc_pwc", "where": "dense_kxk"},
        SHIFT | {"variant": "q"},
        SHIFT | {"variant": "ps", "bits": 3},
        SHIFT | {"variant": "v1", "frozen": True},
    ],
    ids=lambda c: "-".join(str(v) for k, v in c.items() if k != "where"),
)
def test_a_checkpoint_of_the_replaced_network_is_restored_exactly(tmp_path, images, conv):
    path = tmp_path / "network.pt"
    network = resnet20(conv)
    torch.save(network.state_dict(), path)
    restored = resnet20(conv, path)
    assert_same_state(restored.state_dict(), network.state_dict())
    assert torch.equal(restored(images), network(images))


@pytest.mark.parametrize("words", [{}, {"se_reduction": 4}], ids=str)
def test_a_conversion_by_energy_is_restored_with_its_ranks(tmp_path, float_network, images, words):
    conv = {"name": "low_rank", "where": "dense_kxk", "rank": None, "energy": 0.8}
    torch.save(float_network.state_dict(), tmp_path / "float.pt")
    network = resnet20(conv, tmp_path / "float.pt", **words)
    saved = {"state_dict": network.state_dict(), "settings": {"model": "resnet20_cifar", "conv": conv}}
    torch.save(saved, tmp_path / "network.ckpt")
    restored = resnet20(conv, tmp_path / "network.ckpt", **words)
    assert repr(restored) == repr(network)
    assert len({m.inner_channels for m in network.modules() if isinstance(m, LowRankConv2d)}) > 3
    assert torch.equal(restored(images), network(images))

    torch.save(timm.create_model("deepshift_mnist_conv").state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConvReproError, match=r"neither as timm builds it nor with low_rank: it lacks conv1.weight"):
        resnet20(conv, tmp_path / "other.pt", **words)


@pytest.mark.parametrize("conv", [STANDARD, HETCONV], ids=lambda c: c["name"])
def test_a_checkpoint_is_only_for_the_model_and_arguments_that_it_was_trained_with(tmp_path, conv):
    path, dropout = tmp_path / "network.ckpt", {"drop_rate": 0.1}
    network = resnet20(conv)
    settings = {"model": "resnet20_cifar", "conv": conv, "model_args": dropout}
    saved = {"state_dict": network.state_dict(), "settings": settings}
    torch.save(saved, path)
    restored = resnet20(conv, path, model_args=dropout)
    assert_same_state(restored.state_dict(), network.state_dict())
    with pytest.raises(ConvReproError, match=r"trained with model_args.drop_rate=0.1, but model_args.drop_rate=None"):
        resnet20(conv, path)

    torch.save(saved | {"settings": {"model": "resnet20_cifar", "conv": conv}}, path)
    resnet20(conv, path, model_args=dropout)
    torch.save(saved | {"settings": settings | {"model": "resnet32_cifar"}}, path)
    with pytest.raises(ConvReproError, match=r"trained with model=resnet32_cifar, but model=resnet20_cifar is given"):
        resnet20(conv, path, model_args=dropout)


@pytest.mark.parametrize("settings", [{}, {"lr": 0.1}, {"model": "r", "conv": 3}, {"conv": {"name": "shift"}}], ids=str)
def test_what_others_call_settings_is_not_read(tmp_path, float_network, settings):
    torch.save({"state_dict": float_network.state_dict(), "settings": settings}, tmp_path / "float.pt")
    assert_same_state(resnet20(STANDARD, tmp_path / "float.pt").state_dict(), float_network.state_dict())


@register_model
def nested_test_network(num_classes: int, in_chans: int, **_: object) -> nn.Module:
    """A network with a child called like what wraps networks elsewhere."""
    return nn.Sequential(OrderedDict(network=nn.Conv2d(in_chans, num_classes, 3), pool=nn.AdaptiveAvgPool2d(1)))


def test_a_child_called_like_a_wrapper_keeps_its_name(tmp_path):
    network, _ = build("nested_test_network", conv=STANDARD, num_classes=4)
    torch.save(network.state_dict(), tmp_path / "nested.pt")
    restored, _ = build("nested_test_network", conv=STANDARD, num_classes=4, weights=str(tmp_path / "nested.pt"))
    assert list(restored.state_dict()) == ["network.weight", "network.bias"]
    assert_same_state(restored.state_dict(), network.state_dict())


def test_operators_without_conversion_refuse_float_weights(tmp_path, float_network):
    path = tmp_path / "float.pt"
    torch.save(float_network.state_dict(), path)
    with pytest.raises(ConvReproError, match=r"layer 'layer1.0.conv1': operator gwc_pwc cannot take over weights"):
        resnet20({"name": "gwc_pwc", "where": "dense_kxk"}, path)


def test_weights_of_another_network_are_named_with_the_first_differences(tmp_path, float_network):
    path = tmp_path / "other.pt"
    state = dict(float_network.state_dict())
    state["head.weight"] = state.pop("linear.weight")
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, path)
    with pytest.raises(ConvReproError) as error:
        resnet20(HETCONV, path)
    assert str(error.value) == (
        f"weights {path} do not fit resnet20_cifar with num_classes=10, in_chans=3, neither as timm builds it nor with "
        "hetconv: it lacks linear.weight, head.weight is unknown, conv1.weight is (16, 1, 3, 3), not (16, 3, 3, 3)"
    )
    torch.save(timm.create_model("deepshift_mnist_conv").state_dict(), path)
    with pytest.raises(ConvReproError, match=r"it lacks conv1.weight, it lacks bn1.weight, .* and \d+ more$"):
        resnet20(STANDARD, path)


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(ConvReproError, match=r"weights .*none.pt do not exist"):
        resnet20(STANDARD, tmp_path / "none.pt")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("not a checkpoint")
        with pytest.raises(ConvReproError, match=rf"weights .*{name} cannot be read: damaged"):
            resnet20(STANDARD, tmp_path / name)
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ConvReproError, match=r"weights .*empty.pt cannot be read: damaged"):
        resnet20(STANDARD, tmp_path / "empty.pt")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "bare.pt")
    with pytest.raises(ConvReproError, match=r"weights .*bare.pt hold no state dict"):
        resnet20(STANDARD, tmp_path / "bare.pt")


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched"),))


def test_a_checkpoint_cannot_execute_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Exploit()}, tmp_path / "exploit.pt")
    with pytest.raises(ConvReproError, match=r"exploit.pt cannot be read"):
        resnet20(STANDARD, tmp_path / "exploit.pt")
    assert not Path("touched").exists()
