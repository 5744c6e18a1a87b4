"""Networks and steps that the stages time: VGG-16 on CIFAR-10's images, its convolutions replaced."""

import timm
import torch
from measure import Step
from torch import Tensor, nn
from torch.nn import functional as F

import convrepro.models.zoo  # noqa: F401 (registers VGG-16 with timm)
from convrepro.models.export import fuse
from convrepro.models.surgery import replace_convs
from convrepro.ops import HetConv2d
from convrepro.ops.hetconv_triton import PackedHetConv


def network(operator: str, device: str, **knobs: object) -> nn.Module:
    """VGG-16 in channels_last, its KxK convolutions but the first replaced by `operator`."""
    torch.manual_seed(0)
    net = timm.create_model("vgg16_cifar", num_classes=10)
    if operator != "standard":
        replace_convs(net, operator, "dense_kxk", knobs)
    return net.to(device, memory_format=torch.channels_last)


def images(batch: int, device: str, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)


def training_step(net: nn.Module, batch: int, device: str, side: int = 32) -> Step:
    """One step of SGD with momentum under bfloat16 autocast, on one batch that stays on the device."""
    x, labels = images(batch, device, side), torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=device == "cuda")

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def layer_steps(layer: nn.Module, x: Tensor) -> dict[str, Step]:
    """`forward`, and `training` for forward and backward, under bfloat16 autocast, x in bfloat16."""
    device = x.device.type
    leaf = x.detach().requires_grad_()
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        upstream = torch.randn_like(layer(x))

    def forward() -> Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            return layer(x)

    def training() -> tuple[Tensor, ...]:
        with torch.autocast(device, torch.bfloat16):
            y = layer(leaf)
        return torch.autograd.grad(y, [leaf, *layer.parameters()], upstream)

    return {"forward": forward, "training": training}


def layer(channels: int, filters: int, device: str, p: int = 1, form: str = "plain") -> nn.Module:
    """HetConv with a 3x3 window; for p=1 the dense convolution."""
    if p == 1:
        conv = nn.Conv2d(channels, filters, 3, padding=1)
    else:
        conv = HetConv2d(channels, filters, 3, padding=1, p=p, form=form)
    return conv.to(device, memory_format=torch.channels_last)


class ConvReLU(nn.Module):
    """A convolution and a ReLU in one kernel of cuDNN."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        words = conv.stride, conv.padding, conv.dilation, conv.groups
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *words)


def for_inference(net: nn.Module, device: str, relu: bool) -> nn.Module:
    """The fused form in bfloat16; with `relu`, and on a GPU, convolutions of one kernel do the ReLUs behind them."""
    net = fuse(net)[0].to(torch.bfloat16 if device == "cuda" else torch.float32)
    if not relu or device != "cuda":
        return net
    for parent in list(net.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        kept = [child for child in parent if not isinstance(child, nn.Identity)]
        made: list[nn.Module] = []
        for child in kept:
            if isinstance(child, nn.ReLU) and made and type(made[-1]) is nn.Conv2d:
                made[-1] = ConvReLU(made[-1])
            elif isinstance(child, nn.ReLU) and made and isinstance(made[-1], PackedHetConv):
                made[-1].relu = True
            else:
                made.append(child)
        parent._modules = {str(i): child for i, child in enumerate(made)}
    return net


def inference_step(net: nn.Module, batch: int, device: str, relu: bool) -> Step:
    """The fused form of `net` on one batch."""
    net = for_inference(net, device, relu)
    x = images(batch, device).to(next(net.parameters()).dtype)

    def step() -> Tensor:
        with torch.no_grad():
            return net(x)

    return step
