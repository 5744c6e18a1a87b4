"""An integer reference for DeepShift layers (arXiv 1905.13298), which uses only additions and bit shifts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convrepro.ops.power_of_two import sign_and_exponent
from convrepro.ops.shift import ShiftConv2d, ShiftLinear


@torch.no_grad()
def integer_forward(layer: ShiftConv2d | ShiftLinear, x: Tensor, *, truncate: bool = False) -> Tensor:
    """Returns the output of `layer` in evaluation mode for the float input `x`, computed by int64 additions and shifts.

    The output has the dtype float64. The input is rounded to integer codes with f fraction bits, according to
    `layer.activation_format`. A weight +-2^p may negate a code and shifts it by p. If r is the longest shift to the
    right in the layer, the sum has f + r fraction bits, so that no product loses a bit. The bias of Q and PS is added
    to the sum as an integer; the float bias of v1 is added at the end.

    The result equals `layer.double()(x.double())` bit for bit if float64 represents all partial sums exactly
    (magnitudes below 2^(53 - f - r); in v1 this includes bits of the bias beyond f + r). The same holds in float32 for
    sums within 24 bits if the convolution computes plain sums of products (no Winograd, FFT or TF32).

    With `truncate`, an arithmetic shift to the right cuts each signed product to f fraction bits before it is added, as
    hardware with a narrow accumulator and the authors' kernels do. Each term then loses less than 2^-f.

    Raises ValueError if the layer does not round its input, has a weight that is not finite, or needs sums of more than
    63 bits.
    """
    form = layer.activation_format
    if form is None:
        raise ValueError("activation='float' has no integer form; valid: 'paper' or [integer_bits, fraction_bits]")
    sign, exponent = (t.flatten(1) for t in sign_and_exponent(layer.quantized_weight()))
    right = 0 if truncate else max(0, -int(exponent.min()))
    shift = exponent + right
    codes = (form.quantize(x).double() / form.resolution).long()
    rows, shape = _rows(layer, codes)
    bias = torch.zeros(len(sign), dtype=torch.int64, device=x.device)
    if layer.bias is not None and layer.variant != "v1":
        bias = (form.quantize(layer.bias).double() / form.resolution).long() << right
    _check_width(codes, sign, shift, bias)
    per_group = len(sign) // rows.shape[1]
    columns = [_shift_and_add(rows[:, n // per_group], sign[n], shift[n]) for n in range(len(sign))]
    y = (torch.stack(columns, dim=1) + bias).double() * form.resolution * 2.0**-right
    if layer.bias is not None and layer.variant == "v1":
        y += layer.bias
    return y.reshape(shape) if isinstance(layer, ShiftLinear) else y.reshape(shape).permute(0, 3, 1, 2)


def _shift_and_add(codes: Tensor, sign: Tensor, shift: Tensor) -> Tensor:
    """Returns the sum of sign * codes * 2^shift over the last axis; each product is rounded towards minus infinity."""
    signed = torch.where(sign < 0, -codes, codes).masked_fill(sign == 0, 0)
    return ((signed << shift.clamp(min=0)) >> (-shift).clamp(0, 63)).sum(dim=-1)


def _rows(layer: ShiftConv2d | ShiftLinear, codes: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Returns the codes in each window, (positions, groups, fan_in), and the output shape with the channels last."""
    if isinstance(layer, ShiftLinear):
        return codes.reshape(-1, 1, layer.in_features), (*codes.shape[:-1], layer.out_features)
    height, width = layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # Some padding modes do not support integers. float64 represents the codes exactly.
    codes = F.pad(codes.double(), (width, width, height, height), mode).long()
    for axis, (k, d, s) in enumerate(zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)):
        codes = codes.unfold(2 + axis, d * (k - 1) + 1, s)
    windows = codes[..., :: layer.dilation[0], :: layer.dilation[1]].permute(0, 2, 3, 1, 4, 5)
    return windows.reshape(windows.shape[:3].numel(), layer.groups, -1), (*windows.shape[:3], layer.out_channels)


def _check_width(codes: Tensor, sign: Tensor, shift: Tensor, bias: Tensor) -> None:
    largest = float(codes.abs().max()) if codes.numel() else 0.0
    gain = torch.exp2(shift.double()).masked_fill(sign == 0, 0).sum(dim=1).max()
    bound = largest * float(gain) + float(bias.abs().max())
    if bound >= 2.0**63:
        raise ValueError(
            f"sums of up to {bound:.3g} units, of codes shifted left by up to {int(shift.max())} bits, do not fit "
            "63 bits; valid: fewer fraction bits, or truncate=True"
        )
