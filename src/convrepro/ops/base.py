"""Base classes of the operators: the arguments of `nn.Conv2d` and `nn.Linear`, cost, initialisation, deployment."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

Pair = int | tuple[int, int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def pair(value: object, name: str) -> tuple[int, int]:
    """Returns `value` as (height, width). Raises ValueError if it is neither an integer nor a pair of integers."""
    result = (value, value) if isinstance(value, int) else value
    if isinstance(result, Sequence) and len(result) == 2 and all(isinstance(v, int) for v in result):
        height, width = result
        return height, width
    raise ValueError(f"{name}={value!r} must be an integer or a pair of integers; valid: 1, (1, 2), ...")


def divisors(number: int) -> list[int]:
    """Returns the divisors of `number` in ascending order."""
    return [d for d in range(1, number + 1) if number % d == 0]


def check_divisor(name: str, value: object, number: int, phrase: str) -> None:
    """Raises ValueError if `value` is not an integer that divides `number`. The message calls the number `phrase`."""
    valid = divisors(number)
    if not isinstance(value, int) or value not in valid:
        raise ValueError(f"{name}={value!r} must divide {phrase}; valid: {', '.join(map(str, valid))}")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises ValueError if `value` is not one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; valid: {', '.join(map(str, choices))}")


def check_positive(**sizes: int) -> None:
    """Raises ValueError if a size is below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def empty_parameter(
    *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Parameter:
    """Returns an uninitialised parameter. Raises ValueError for a shape that no memory holds."""
    try:
        return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
    except (RuntimeError, TypeError) as error:  # torch's TypeError is that of a size beyond 64 bits
        raise ValueError(f"a parameter of shape {shape} cannot be allocated") from error


def knobs(operator: type[nn.Module]) -> dict[str, object]:
    """Returns the operator's own knobs: its keyword-only constructor parameters with their defaults."""
    parameters = inspect.signature(operator.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def conv_arguments(conv: nn.Conv2d) -> dict[str, Any]:
    """Returns the constructor arguments of an operator that replaces `conv`: its shape, device and dtype."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    arguments = {name: getattr(conv, name) for name in names}
    return arguments | {"bias": conv.bias is not None, "device": conv.weight.device, "dtype": conv.weight.dtype}


def linear_arguments(linear: nn.Linear) -> dict[str, Any]:
    """Returns the constructor arguments of an operator that replaces `linear`: its shape, device and dtype."""
    arguments = {"in_features": linear.in_features, "out_features": linear.out_features}
    return arguments | {"bias": linear.bias is not None, "device": linear.weight.device, "dtype": linear.weight.dtype}


def scaled(weight: Tensor, scale: Tensor) -> nn.Parameter:
    """Returns `weight` (N, ...) with row n multiplied by `scale[n]`; the dtype and memory format do not change."""
    return nn.Parameter(weight.detach() * scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)), False)


@torch.no_grad()
def fold_bias_(layer: "Operator | nn.Conv2d", scale: Tensor, shift: Tensor, dtype: torch.dtype) -> None:
    """Replaces the bias b of `layer` by `b * scale + shift` (N,). A bias of None counts as zero."""
    bias = shift if layer.bias is None else layer.bias * scale + shift
    layer.bias = nn.Parameter(bias.to(dtype), False)


class Operator(nn.Module, ABC):
    """Base class of all operators.

    An operator takes the arguments of the layer that it replaces, in the same order. Its own knobs are keyword-only
    and are stored as attributes of the same name. `forward` never changes a parameter. Weights have two or more
    dimensions; norms, scalars and buffers may be inside, too.

    A subclass defines `macs`, `reset_parameters` and `forward`. Where the definition allows it, it also has `from_conv`
    (or `from_linear`), a class method that converts a trained layer: `from_conv(conv, **knobs)`; `deployed`; `_scale_`,
    so that a batch norm behind it can be folded; and `forward_exact`, where `forward` executes more than `macs` says.
    """

    bias: nn.Parameter | None

    def deployed(self) -> nn.Module:
        """Returns a module that computes what `forward` computes in evaluation mode, for inference.

        Everything that depends on the weights alone is computed in advance. The module may share tensors with the
        operator, and it may be the operator itself.
        """
        return self

    @abstractmethod
    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights by one of the schemes in `ops.init`."""

    @abstractmethod
    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates for one image with out_h x out_w output positions, without bias and norms.

        Where a part acts on the positions of the input, these are those of the largest input that has this output.
        """

    def multiplications(self, out_h: int, out_w: int) -> int:
        """Returns how many of the multiplications in `macs` remain multiplications."""
        return self.macs(out_h, out_w)

    def shifts(self, out_h: int, out_w: int) -> int:
        """Returns how many of the multiplications in `macs` became bit shifts."""
        return 0

    def weight_bits(self) -> int:
        """Returns the number of bits that the deployed weights take, without biases."""
        return 32 * sum(p.numel() for name, p in self.named_parameters() if not name.endswith("bias"))

    @torch.no_grad()
    def _with_bias_and_mode_of(self, layer: nn.Conv2d | nn.Linear) -> Self:
        """Copies the bias of `layer`, if there is one, and its training mode; returns the operator."""
        if self.bias is not None and layer.bias is not None:
            self.bias.copy_(layer.bias)
        return self.train(layer.training)

    def _knobs_repr(self) -> list[str]:
        return [f"{knob}={getattr(self, knob)!r}" for knob in knobs(type(self))]


class ConvOperator(Operator):
    """Base class of the drop-ins for `nn.Conv2d`: input (B, in_channels, H, W), output (B, out_channels, H', W').

    `padding` may be "same" (with stride 1) or "valid". `where` is the rule that selects the layers to replace, for an
    operator that is registered without a configuration file.

    Raises ValueError for a size below 1, for channels that `groups` does not divide, and for an unknown padding mode.
    """

    where: ClassVar[str] = "dense_kxk"

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
        check_positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
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

    @classmethod
    def _check_ungrouped(cls, groups: int) -> None:
        """Raises ValueError unless `groups` is 1, for operators that have no grouped form."""
        if groups != 1:
            raise ValueError(f"groups={groups}: {cls.__name__} can only replace an ungrouped convolution; valid: 1")

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the input and the zero padding that the convolution has to add.

        For a padding mode other than "zeros" the input is padded here, and no zero padding remains.
        """
        if self.padding_mode == "zeros":
            return x, self.padding
        height, width = self.padding
        return F.pad(x, (width, width, height, height), self.padding_mode), (0, 0)

    def _plus_bias(self, y: Tensor) -> Tensor:
        """Returns the output y (B, N, H', W') plus the bias, if there is one, in the dtype of y."""
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def _dense_fans(self) -> tuple[int, int]:
        """Returns (fan_in, fan_out) of the standard convolution that the operator replaces."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        return taps * self.in_channels // self.groups, taps * self.out_channels // self.groups

    def forward_exact(self, x: Tensor) -> Tensor:
        """Computes the same as `forward` in a plain form that executes exactly `macs()` multiply-accumulates."""
        return self(x)

    def fold_(self, scale: Tensor, shift: Tensor) -> bool:
        """Changes weights and bias so that the output becomes `scale * output + shift`; for inference only.

        `scale` and `shift` (N,) hold one value for each output channel. Returns False, and changes nothing, if the
        weights cannot take a scale for each output channel or have to keep their form (powers of two, few bits).
        """
        if not self._scale_(scale):
            return False
        fold_bias_(self, scale, shift, next(self.parameters()).dtype)
        return True

    def _scale_(self, scale: Tensor) -> bool:
        """Multiplies the weights by `scale` for `fold_`; returns False if they cannot be scaled."""
        return False

    def dense_macs(self, out_h: int, out_w: int) -> int:
        """Returns the `macs` of the standard convolution that the operator replaces."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        return out_h * out_w * self.out_channels * (self.in_channels // self.groups) * taps

    def scaled_bias(self, out_h: int, out_w: int) -> Fraction:
        """Returns the number of bias additions as HetConv's tables count them.

        They count one addition for each output element, with or without a bias, and scale it by the operator's share
        of `dense_macs`.
        """
        share = Fraction(self.macs(out_h, out_w), self.dense_macs(out_h, out_w))
        return self.out_channels * out_h * out_w * share

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        parts += [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        return ", ".join(parts + self._knobs_repr())


class LinearOperator(Operator):
    """Base class of the drop-ins for `nn.Linear`: input (..., in_features), output (..., out_features).

    Raises ValueError for a size below 1.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        check_positive(in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features

    def extra_repr(self) -> str:
        return ", ".join([f"{self.in_features}, {self.out_features}", *self._knobs_repr()])
