"""What every operator shares: the constructor words of `nn.Conv2d` and what it promises about its cost."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = int | tuple[int, int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def pair(value: Pair, word: str) -> tuple[int, int]:
    """`value` as (height, width); raises ValueError where it is neither an int nor two ints."""
    result = (value, value) if isinstance(value, int) else value
    if not isinstance(result, Sequence) or len(result) != 2 or not all(isinstance(v, int) for v in result):
        raise ValueError(f"{word}={value!r} must be an integer or a pair of integers; valid: 1, (1, 2), ...")
    return tuple(result)


def divisors(number: int) -> list[int]:
    """The divisors of `number`, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def check_divisor(word: str, value: object, number: int, phrase: str) -> None:
    """Raise ValueError where `value` is no integer that divides `number`, which the message calls by `phrase`."""
    valid = divisors(number)
    if not isinstance(value, int) or value not in valid:
        raise ValueError(f"{word}={value!r} must divide {phrase}; valid: {', '.join(map(str, valid))}")


def knobs(operator: type[nn.Module]) -> dict[str, object]:
    """The operator's own knobs: its keyword-only constructor parameters and their defaults."""
    parameters = inspect.signature(operator.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def conv_arguments(conv: nn.Conv2d) -> dict[str, object]:
    """The constructor words of an operator that takes the place of `conv`: its shape, device and dtype."""
    words = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    arguments = {word: getattr(conv, word) for word in words}
    return arguments | {"bias": conv.bias is not None, "device": conv.weight.device, "dtype": conv.weight.dtype}


def scaled(weight: Tensor, scale: Tensor) -> nn.Parameter:
    """`weight` (N, ...) with each row times its entry of `scale` (N,); in the dtype and memory format of `weight`."""
    return nn.Parameter(weight.detach() * scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)), False)


@torch.no_grad()
def fold_bias_(layer: nn.Module, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> None:
    """Put `layer.bias * scale + shift` (N,) in the place of the bias of `layer`, which may be None."""
    bias = shift if layer.bias is None else layer.bias * scale + shift
    layer.bias = nn.Parameter(bias.to(dtype), False)


class ConvOperator(nn.Module, ABC):
    """Base of the drop-ins for `nn.Conv2d`: input (B, in_channels, H, W), output (B, out_channels, H', W').

    Takes `nn.Conv2d`'s arguments in its order; an operator's own knobs are keyword-only and stored as attributes of
    the same name. `padding` may be "same" (stride 1) or "valid". `forward` never changes a parameter.

    Raises ValueError for a size below 1, channels that `groups` does not divide, or an unknown padding mode.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        for word, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            if value < 1:
                raise ValueError(f"{word}={value} must be at least 1")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r} is unknown; valid: {', '.join(PADDING_MODES)}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        for word in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, word)) < 1:
                raise ValueError(f"{word}={getattr(self, word)} must be at least 1")
        self.padding = self._resolve_padding(padding)
        self.groups = groups
        self.padding_mode = padding_mode

    def _resolve_padding(self, padding: Pair | str) -> tuple[int, int]:
        if padding == "valid":
            return (0, 0)
        if padding != "same":
            return pair(padding, "padding")
        if self.stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, not {self.stride}")
        extents = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        if any(e % 2 for e in extents):
            raise ValueError(f"padding='same' needs an odd kernel extent, not kernel_size={self.kernel_size}")
        return (extents[0] // 2, extents[1] // 2)

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input, padded here where the mode is not "zeros", and the zero padding that is left to do."""
        if self.padding_mode == "zeros":
            return x, self.padding
        height, width = self.padding
        return F.pad(x, (width, width, height, height), self.padding_mode), (0, 0)

    def forward_exact(self, x: Tensor) -> Tensor:
        """The plain reference form: as `forward`, executing exactly `macs()` multiply-accumulates."""
        return self(x)

    def fold_(self, scale: Tensor, shift: Tensor) -> bool:
        """Make the output `scale * output + shift`, both (N,) for the output channels, with weights for inference.

        Returns False, with nothing changed, where the weights have no place for a scale of each output channel, or
        must stay what they are: powers of two, codes of few bits.
        """
        if not self._scale_(scale):
            return False
        fold_bias_(self, scale, shift, next(self.parameters()).dtype)
        return True

    def _scale_(self, scale: Tensor) -> bool:
        """The weights' share of `fold_`."""
        return False

    def deployed(self) -> nn.Module:
        """A module that gives what `forward` gives in evaluation mode, with everything done that depends on the weights
        alone. It may share tensors with the operator, and may be the operator itself.
        """
        return self

    @abstractmethod
    def reset_parameters(self, init: str = "torch") -> None:
        """Draw fresh weights by one of the schemes in `ops.init`."""

    @abstractmethod
    def macs(self, out_h: int, out_w: int) -> int:
        """Multiply-accumulates for one image with an output of out_h x out_w positions, bias not counted."""

    def dense_macs(self, out_h: int, out_w: int) -> int:
        """`macs` of the standard convolution whose place the operator takes."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        return out_h * out_w * self.out_channels * (self.in_channels // self.groups) * taps

    def scaled_bias(self, out_h: int, out_w: int) -> Fraction:
        """Bias additions as HetConv's tables count them, whether there is a bias or not: one for each output element,
        times the operator's share of `dense_macs`.
        """
        share = Fraction(self.macs(out_h, out_w), self.dense_macs(out_h, out_w))
        return self.out_channels * out_h * out_w * share

    def multiplications(self, out_h: int, out_w: int) -> int:
        """Multiplications among `macs` that remain multiplications."""
        return self.macs(out_h, out_w)

    def shifts(self, out_h: int, out_w: int) -> int:
        """Multiplications among `macs` that became bit shifts."""
        return 0

    def weight_bits(self) -> int:
        """Bits that the weights take when deployed, biases left out."""
        return 32 * sum(p.numel() for name, p in self.named_parameters() if not name.endswith("bias"))

    def extra_repr(self) -> str:
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        words += [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        words += [f"{knob}={getattr(self, knob)!r}" for knob in knobs(type(self))]
        return ", ".join(words)
