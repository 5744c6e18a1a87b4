"""The sum of a grouped KxK convolution and a dense 1x1 convolution of the same input, as one autograd step on a CPU.

The 1x1 convolution is a matrix product that adds in place to the output of the KxK convolution, in the forward and in
the backward pass. Neither result has to be written and read a second time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FULL_GROUP = 8
"""The number of channels in a group from which oneDNN's grouped kernels fill their vector registers."""


def fits(x: Tensor) -> bool:
    """Returns whether `kxk_plus_1x1` supports the input `x`.

    `x` has to be on a CPU, in channels_last and in float32 or float64, without autocast, tracing or compilation.
    """
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def packed(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """Merges neighbouring groups of a grouped weight (N, C/groups, K, K) until each has at least 8 channels.

    Returns the merged weight, which has zeros between the original groups, and the number of merged groups. The weight
    of a depthwise convolution is returned unchanged, because oneDNN has special kernels for it.
    """
    channels = weight.shape[1]
    wide = [q for q in range(1, groups + 1) if groups % q == 0 and q * channels >= FULL_GROUP]
    merged = wide[0] if wide else groups  # torch.compile of torch 2.11 cannot read min(..., default=...)
    if channels == 1 or merged == 1:
        return weight, groups
    own = torch.eye(merged, dtype=weight.dtype, device=weight.device)[:, None, :, None, None, None]
    spread = weight.unflatten(0, (groups // merged, merged, -1)).unsqueeze(3) * own
    return spread.flatten(3, 4).flatten(0, 2), groups // merged


class _Sum(torch.autograd.Function):
    """Computes the sum of both convolutions. If `centres` is None, the 1x1 convolution reads `x`."""

    @staticmethod
    def forward(
        x: Tensor, centres: Tensor | None, kxk: Tensor, w1x1: Tensor, bias: Tensor | None, *geometry: Any
    ) -> Tensor:
        y = F.conv2d(x, kxk, bias, *geometry).contiguous(memory_format=torch.channels_last)
        _pixels(y).addmm_(_pixels(x if centres is None else centres), w1x1.t())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, centres, kxk, w1x1, bias, stride, padding, dilation, groups = inputs
        ctx.save_for_backward(x, centres, kxk, w1x1)
        ctx.geometry = (None if bias is None else [len(bias)], stride, padding, dilation, False, (0, 0), groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, centres, kxk, w1x1 = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x, of_centres, of_kxk, of_w1x1, of_bias = ctx.needs_input_grad[:5]
        geometry = ctx.geometry
        grad_x, grad_kxk, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, kxk, *geometry, [of_x, of_kxk, of_bias and geometry[0] is not None]
        )
        rows, grad_centres, grad_w1x1 = _pixels(grad), None, None
        if of_x:
            grad_x = grad_x.contiguous(memory_format=torch.channels_last)
            if centres is None:
                _pixels(grad_x).addmm_(rows, w1x1)
        if of_centres:
            grad_centres = (rows @ w1x1).view(grad.shape[0], *grad.shape[2:], -1).movedim(-1, 1)
        if of_w1x1:
            grad_w1x1 = rows.t() @ _pixels(x if centres is None else centres)
        return grad_x, grad_centres, grad_kxk, grad_w1x1, grad_bias, None, None, None, None


def _pixels(x: Tensor) -> Tensor:
    """Returns a view (B*H*W, C) of x (B, C, H, W), which must be in channels_last."""
    return x.movedim(1, -1).view(-1, x.shape[1])


def kxk_plus_1x1(
    x: Tensor,
    centres: Tensor | None,
    weight_kxk: Tensor,
    weight_1x1: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Returns `conv2d(x, weight_kxk, bias, ..., groups) + conv2d(centres, weight_1x1)` (B, N, H', W') in channels_last.

    x: (B, C, H, W), an input for which `fits` returns True. centres: (B, C, H', W'), or None if it is equal to x.
    weight_kxk: (N, C/groups, K, K). weight_1x1: (N, C). The result can be differentiated once.
    """
    weight, groups = packed(weight_kxk, groups)
    if centres is not None:
        centres = centres.contiguous(memory_format=torch.channels_last)
    return _Sum.apply(x, centres, weight, weight_1x1, bias, stride, padding, dilation, groups)
