"""Goals of the operators: training steps, evaluations and sizes."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from formulations import IndexedIgc, MaskedHetConv, conv_relu_fused, with_formulation
from goal import Amount, Goal, Step
from torch import nn

from convrepro.models.build import build
from convrepro.models.export import fuse
from convrepro.models.zoo.igcv3 import Igcv3Block
from convrepro.ops import HetConv2d, IGCV1Conv2d
from convrepro.ops.shift import ShiftOperator
from convrepro.ops.shift_packing import pack, unpack

BATCH = 128
CLASSES = 10
VGG = "vgg16_cifar"

Build = Callable[[], nn.Module]


def network(model: str, conv: str = "standard", where: str = "dense_kxk", **words: object) -> nn.Module:
    """A network with its operator; `words` are the operator's knobs, or with the standard one the model's arguments."""
    knobs, arguments = ({}, words) if conv == "standard" else (words, {})
    convs = {"name": conv, "where": where, **knobs}
    return build(model, conv=convs, num_classes=CLASSES, model_args=arguments)[0]


def learning(build: Build, nchw: bool = False) -> Step:
    """Forward, backward, SGD with momentum, and what operators do after a step; on random images of 32x32."""
    net, images = _placed(build().train(), torch.randn(BATCH, 3, 32, 32), nchw)
    labels = torch.randint(CLASSES, (BATCH,))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    after = [module.after_optimizer_step for module in net.modules() if hasattr(module, "after_optimizer_step")]

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        for settle in after:
            settle()

    return step


def evaluating(build: Build) -> Step:
    net, images = _placed(build().eval(), torch.randn(BATCH, 3, 32, 32))

    @torch.inference_mode()
    def step() -> None:
        net(images)

    return step


def block(channels: int, side: int, groups: tuple[int, int], act_first: bool) -> Step:
    """Forward and backward of a block that expands six times, 64 images; with groups (1, 1) that of MobileNetV2."""
    words = {"stride": 1, "groups": groups, "shortcut": True, "act_first": act_first}
    net = Igcv3Block(channels, 6 * channels, channels, **words)
    net, images = _placed(net.train(), torch.randn(64, channels, side, side))
    images.requires_grad_()
    upstream = torch.randn_like(images)

    def step() -> None:
        net.zero_grad()
        images.grad = None
        net(images).backward(upstream)

    return step


def _placed(net: nn.Module, images: torch.Tensor, nchw: bool = False) -> tuple[nn.Module, torch.Tensor]:
    layout = torch.contiguous_format if nchw else torch.channels_last
    return net.to(memory_format=layout), images.to(memory_format=layout)


def hetconv(p: int) -> nn.Module:
    return network(VGG, "hetconv", p=p)


def masked_hetconv(p: int) -> nn.Module:
    return with_formulation(hetconv(p), HetConv2d, MaskedHetConv)


def folded_dense() -> nn.Module:
    """VGG-16 for inference; the fused convolutions are checked against the network itself."""
    net = network(VGG).eval()
    fused, images = conv_relu_fused(copy.deepcopy(net)), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), net(images), rtol=1e-3, atol=1e-3)
    return fused


def igc() -> nn.Module:
    return network("igcv1_plain_cifar")


def indexed_igc() -> nn.Module:
    return with_formulation(igc(), IGCV1Conv2d, IndexedIgc)


def shift(variant: str, activation: str) -> nn.Module:
    return network("resnet20_cifar", "shift", "all", variant=variant, activation=activation)


def packed_bytes(model: str) -> int:
    """Size of a network whose convolutions and linear layers are packed in 5 bits; each is unpacked and compared."""
    net = build(model, conv={"name": "shift", "where": "all", "variant": "ps"}, num_classes=1000)[0]
    layers = [module for module in net.modules() if isinstance(module, ShiftOperator)]
    total = 0
    for layer in layers:
        data = pack(layer)
        if not torch.equal(unpack(data), layer.quantized_weight()):
            raise AssertionError(f"{layer} is not unpacked to the bit")
        total += len(data)
    latents = {id(latent) for layer in layers for latent in layer.latents}
    return total + sum(t.nbytes for t in _floats(net) if id(t) not in latents)


def float_bytes(model: str) -> int:
    net = build(model, conv={"name": "standard", "where": "all"}, num_classes=1000)[0]
    return sum(t.nbytes for t in _floats(net))


def _floats(net: nn.Module) -> list[torch.Tensor]:
    return [t for t in chain(net.parameters(), net.buffers()) if t.is_floating_point()]


def goals() -> list[Goal]:
    dense, step, plain = "dense, channels_last", partial(learning, partial(network, VGG)), "plain convolution"
    found = [
        Goal(f"hetconv-p{p}-train", dense, bound, partial(learning, partial(hetconv, p)), step)
        for p, bound in ((2, 0.72), (4, 0.50), (8, 0.38), (16, 0.34), (64, 0.31))
    ]
    for p, bound in ((4, 0.80), (16, 0.68), (64, 0.65)):
        public = partial(learning, partial(masked_hetconv, p), nchw=True)
        against = "grouped 3x3 + masked 1x1, NCHW"
        found.append(Goal(f"hetconv-p{p}-train-public", against, bound, partial(learning, partial(hetconv, p)), public))
    for p, bound in ((4, 0.56), (16, 0.37), (64, 0.34)):
        fused = partial(evaluating, lambda p=p: fuse(hetconv(p))[0])
        against = "dense, BN folded, conv+relu fused"
        found.append(Goal(f"hetconv-p{p}-eval", against, bound, fused, partial(evaluating, folded_dense)))
    for name, knobs, bound in (("gwc_pwc", {"num_groups": 4}, 0.50), ("dwc_pwc", {}, 0.27)):
        found.append(Goal(f"{name}-train", dense, bound, partial(learning, partial(network, VGG, name, **knobs)), step))
    own, width48 = partial(learning, igc), partial(network, "regconv_plain_cifar", width=48)
    for layout in ("channels_last", "NCHW"):
        indexed = partial(learning, indexed_igc, nchw=layout == "NCHW")
        against = f"index_select permutations, {layout}"
        found.append(Goal(f"igc-l24m2-train-indexed-{layout.lower()}", against, 0.50, own, indexed))
    found.append(Goal("igc-l24m2-train-dense", "dense 3x3 of the same width", 0.50, own, partial(learning, width48)))
    for size in ((24, 32), (64, 16)):
        blocks = partial(block, *size, (2, 2), False), partial(block, *size, (1, 1), True)
        found.append(Goal(f"igcv3-block-{size[0]}", "MobileNetV2 block, channels_last", 1.05, *blocks))
    resnet20 = partial(learning, partial(network, "resnet20_cifar"))
    for activation, bounds in (("float", (1.05, 1.06)), ("paper", (1.08, 1.11))):
        for variant, bound in zip(("q", "ps"), bounds, strict=True):
            shifted = partial(learning, partial(shift, variant, activation))
            inputs = "float" if activation == "float" else "fixed"
            found.append(Goal(f"shift-{variant}-train-{inputs}-inputs", plain, bound, shifted, resnet20))
    for model in ("resnet18", "resnet50"):
        sizes = (lambda model=model: partial(packed_bytes, model)), (lambda model=model: partial(float_bytes, model))
        found.append(Amount(f"shift-packed-{model}", "float32 state dict", 1 / 6.2, *sizes, rounds=1))
    return found
