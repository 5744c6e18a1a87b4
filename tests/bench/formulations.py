"""Formulations that the operators are timed against, written from the definitions in the papers."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.models.export import fuse
from convrepro.ops import HetConv2d, IGCV1Conv2d


class MaskedHetConv(nn.Module):
    """HetConv as published code has it: a grouped KxK convolution plus a dense 1x1 convolution that is masked."""

    def __init__(self, like: HetConv2d) -> None:
        super().__init__()
        channels, groups = (like.in_channels, like.out_channels), like.parts
        words = {"stride": like.stride, "bias": like.bias is not None}
        self.kxk = nn.Conv2d(*channels, like.kernel_size, padding=like.padding, groups=groups, **words)
        self.pointwise = nn.Conv2d(*channels, 1, stride=like.stride, bias=False)
        own = torch.block_diag(*[torch.ones(channels[1] // groups, channels[0] // groups)] * groups)
        self.register_buffer("mask", 1 - own[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.kxk(x) + F.conv2d(x, self.pointwise.weight * self.mask, None, self.pointwise.stride)


class IndexedIgc(nn.Module):
    """IGCV1 as two group convolutions with a permutation of the channels before and behind the second."""

    def __init__(self, like: IGCV1Conv2d) -> None:
        super().__init__()
        first, second = like.primary_partitions, like.out_channels // like.weight_secondary.shape[1]
        words = {"stride": like.stride, "padding": like.padding, "groups": first, "bias": False}
        self.primary = nn.Conv2d(like.in_channels, like.out_channels, like.kernel_size, **words)
        self.secondary = nn.Conv2d(like.out_channels, like.out_channels, 1, groups=second, bias=False)
        order = torch.arange(like.out_channels).view(first, -1).t().flatten()
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x).index_select(1, self.order)
        return self.secondary(x).index_select(1, self.back)


class ConvRelu(nn.Module):
    """A convolution and ReLU in one call of oneDNN; for inference."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        words = conv.padding, conv.stride, conv.dilation, conv.groups
        return torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *words, "relu", [], "")


def with_formulation(network: nn.Module, operator: type[nn.Module], formulation: type[nn.Module]) -> nn.Module:
    """`network` with another formulation in the place of each `operator`; the weights are fresh."""
    for name, module in list(network.named_modules()):
        if isinstance(module, operator):
            network.set_submodule(name, formulation(module))
    return network


def conv_relu_fused(network: nn.Module) -> nn.Module:
    """A dense network of layers in sequence for inference: norms folded, each convolution computed with its ReLU."""
    fused, _ = fuse(network)
    for sequence in [m for m in fused.modules() if isinstance(m, nn.Sequential)]:
        layers = [name for name, module in sequence.named_children() if not isinstance(module, nn.Identity)]
        for name, after in pairwise(layers):
            if type(sequence.get_submodule(name)) is nn.Conv2d and isinstance(sequence.get_submodule(after), nn.ReLU):
                sequence.set_submodule(name, ConvRelu(sequence.get_submodule(name)))
                sequence.set_submodule(after, nn.Identity())
    return fused
