"""Counting rules: named functions from the layers of a network to one exact number.

Papers disagree on whether biases, normalisation and classifiers count, so that each table names its rule. No rule
rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction

from convrepro.errors import ConvReproError

MULTIPLYING = ("conv", "linear", "matmul")
"""The kinds of layers that multiply and accumulate. `matmul` is a product of two activations, as in attention."""


@dataclass(frozen=True)
class LayerCount:
    """The cost of one module for one image. A module with operations of several kinds has one layer for each kind.

    Attributes:
        name: the name of the module in the model, "" for the model itself.
        kind: "conv", "linear", "matmul", "norm", "pool", "resize", or "other" if nothing is counted.
        operator: the class of the module.
        in_channels, out_channels, kernel, groups: those of `nn.Conv2d`; a linear layer has its features and no kernel.
        bias: whether the module has a bias.
        calls: how often the module is called in one forward pass; 0 for a module that is never called.
        out_h, out_w: output positions of its last call; 1 and T for a linear layer on (B, T, N).
        macs: multiply-accumulates as fvcore counts them, summed over the calls. For "norm", "pool" and "resize" these
            are fvcore's estimates of elementwise operations, such as 2 per element of a batch norm.
        promised: what the method `macs` of an operator returns, summed over the calls; None for other modules.
        dense_macs: the MACs of the standard convolution that an operator replaces; for other modules `macs`.
        scaled_bias: bias additions as HetConv's tables count them (`hetconv_scaled_bias`); 0 except for convolutions.
        additions: elements of sums of two tensors of one shape, such as residual additions; 0 for an operator.
        scalings: elements of products of feature maps and one factor for each channel, as in squeeze-and-excitation; 0
            for an operator.
        multiplications, shifts: how many of the multiplications in `macs` remain multiplications and became bit
            shifts, for the kinds that multiply.
        params: elements of its parameters, including frozen ones. A parameter that two modules share is counted in the
            first of them.
        weights: elements of those parameters that are not biases.
        statistics: elements of its running mean and variance.
        weight_bits: bits of its deployed weights, without biases.
    """

    name: str
    kind: str
    operator: str
    in_channels: int | None = None
    out_channels: int | None = None
    kernel: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    calls: int = 0
    out_h: int = 0
    out_w: int = 0
    macs: int = 0
    promised: int | None = None
    dense_macs: int = 0
    scaled_bias: Fraction | int = 0
    additions: int = 0
    scalings: int = 0
    multiplications: int = 0
    shifts: int = 0
    params: int = 0
    weights: int = 0
    statistics: int = 0
    weight_bits: int = 0


@dataclass(frozen=True)
class Count:
    """The layers of a model, in the order of its modules, for one image of `input_size` (C, H, W)."""

    input_size: tuple[int, int, int]
    layers: tuple[LayerCount, ...]

    def total(self, rule: str) -> int | Fraction:
        """Returns the exact total by the counting rule with this name. Raises ConvReproError for an unknown rule."""
        if rule not in RULES:
            raise ConvReproError(f"counting rule {rule!r} is unknown; valid: {', '.join(RULES)}")
        return RULES[rule](self)

    def part(self, patterns: str) -> "Count":
        """Returns the layers whose name matches one of the patterns, which are shell patterns separated by spaces.

        Raises ConvReproError for a pattern that no layer matches.
        """
        wanted = patterns.split()
        if unfit := [
            pattern for pattern in wanted if not any(fnmatchcase(layer.name, pattern) for layer in self.layers)
        ]:
            names = [layer.name for layer in self.layers if layer.macs or layer.params]
            near = get_close_matches(unfit[0], names, cutoff=0) or names
            raise ConvReproError(f"no layer fits {unfit[0]!r}; there are {', '.join(near)} and others")
        layers = (layer for layer in self.layers if any(fnmatchcase(layer.name, pattern) for pattern in wanted))
        return Count(self.input_size, tuple(layers))

    def convolutions(self) -> "Count":
        """Returns the convolutions with more than one output position."""
        layers = (layer for layer in self.layers if layer.kind == "conv" and layer.out_h * layer.out_w != 1)
        return Count(self.input_size, tuple(layers))

    def sum(self, field: str, *kinds: str) -> int | Fraction:
        """Returns the sum of a field of `LayerCount` over the layers of these kinds, or over all layers."""
        return sum(getattr(layer, field) for layer in self.layers if not kinds or layer.kind in kinds)

    def headline(self) -> str:
        """Returns the cost as a short text, such as "313.46 M MACs, 14.98 M parameters at 3x32x32"."""
        size = "x".join(map(str, self.input_size))
        shifts = self.total("shifts")
        saved = f" ({100 * shifts / self.total('macs'):.1f} % shifts)" if shifts else ""
        return f"{_short(self.total('macs'))} MACs{saved}, {_short(self.total('params'))} parameters at {size}"

    def to_dict(self) -> dict[str, object]:
        """Returns plain data for JSON: `input_size`, `totals` by rule, and `layers`. A fraction is the string "a/b"."""
        layers = [{key: _plain(value) for key, value in asdict(layer).items()} for layer in self.layers]
        totals = {name: _plain(rule(self)) for name, rule in RULES.items()}
        return {"input_size": list(self.input_size), "totals": totals, "layers": layers}

    def summary(self) -> str:
        """Returns the headline with all digits, fvcore's own total where it has estimates of other operations, and the
        first operator that executes another number of multiply-accumulates than its method `macs` returns.
        """
        size = "x".join(map(str, self.input_size))
        macs, params = self.total("macs"), self.total("params")
        lines = [f"{macs:,} MACs ({_short(macs)}), {params:,} parameters ({_short(params)}) at {size}"]
        if (whole := self.sum("macs")) != macs:
            estimated = dict.fromkeys(e.kind for e in self.layers if e.macs and e.kind not in MULTIPLYING)
            lines.append(f"fvcore's own total, with its estimates for {', '.join(estimated)}: {whole:,}")
        broken = [layer for layer in self.layers if layer.promised not in (None, layer.macs)]
        if broken:
            first = broken[0]
            lines.append(
                f"counted as executed, which is not what macs() says in {len(broken)} of the layers, the first of them "
                f"{first.name!r}: {first.operator}.macs() returns {first.promised:,}, and {first.macs:,} are executed"
            )
        return "\n".join(lines)

    def table(self) -> str:
        """Returns a text table of the layers with a cost, their share of the MACs, and subtotals by kind.

        Shifts and bits of weights are shown if there are shifts.
        """
        columns = ["layer", "operator", "channels", "kernel", "output", "params", "MACs", "%", "shifts", "weight bits"]
        total = self.total("macs")
        layers = [_describe(layer) + _costs((layer,), total) for layer in self.layers if layer.macs or layer.params]
        sums = []
        for kind in dict.fromkeys(layer.kind for layer in self.layers if layer.macs or layer.params):
            group = [layer for layer in self.layers if layer.kind == kind]
            sums.append([kind, "", "", "", "", *_costs(group, total)])
        sums.append(["total", "", "", "", "", *_costs(self.layers, total)])
        rows = [row if self.sum("shifts") else row[:-2] for row in (columns, *layers, *sums)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_cells(row, widths)).rstrip() for row in rows]
        line = "-" * max(map(len, lines))
        return "\n".join([lines[0], line, *lines[1 : 1 + len(layers)], line, *lines[1 + len(layers) :]])


def _describe(layer: LayerCount) -> list[str]:
    channels = "" if layer.in_channels is None else f"{layer.in_channels} -> {layer.out_channels}"
    kernel = "x".join(map(str, layer.kernel)) + (f" /{layer.groups}" if layer.groups > 1 else "")
    output = f"{layer.out_h}x{layer.out_w}" if layer.out_h * layer.out_w > 1 or layer.kernel else ""
    return [layer.name or "(model)", layer.operator, channels, kernel, output]


def _costs(layers: Sequence[LayerCount], total: int | Fraction) -> list[str]:
    params, shifts, bits = (sum(getattr(e, field) for e in layers) for field in ("params", "shifts", "weight_bits"))
    multiplying = [layer.macs for layer in layers if layer.kind in MULTIPLYING]
    macs = sum(multiplying)
    share = 100 * macs / total if total else 0
    return [f"{params:,}", *([f"{macs:,}", f"{share:.2f}"] if multiplying else ["", ""]), f"{shifts:,}", f"{bits:,}"]


def _cells(row: list[str], widths: list[int]) -> list[str]:
    return [cell.ljust(w) if i < 5 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]


def _short(number: int | Fraction) -> str:
    unit, scale = next(((u, s) for u, s in (("G", 10**9), ("M", 10**6), ("k", 10**3)) if number >= s), ("", 1))
    return f"{float(Fraction(number) / scale):.2f} {unit}" if unit else str(number)


def _plain(value: object) -> object:
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else str(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Rule:
    """A way of counting: `rule(count)` returns an exact integer or fraction.

    `of` is what the rule counts: operations, shifts, parameters or bits. Only counts of the same can be compared.
    """

    description: str
    function: Callable[[Count], int | Fraction]
    of: str = "operations"

    def __call__(self, count: Count) -> int | Fraction:
        return self.function(count)


RULES: dict[str, Rule] = {
    "macs": Rule(
        "multiply-accumulates of convolutions, linear layers and matrix products (attention); no biases",
        lambda count: count.sum("macs", *MULTIPLYING),
    ),
    "conv_fc": Rule(
        "multiply-accumulates of convolutions and linear layers; no biases",
        lambda count: count.sum("macs", "conv", "linear"),
    ),
    "conv_only": Rule(
        "multiply-accumulates of convolutions, except those with a single output position, which are fully connected "
        "layers (such as timm's VGG has); no biases",
        lambda count: count.convolutions().sum("macs"),
    ),
    "two_per_mac": Rule(
        "multiplications and additions of convolutions and linear layers, each counted as one",
        lambda count: 2 * count.sum("macs", "conv", "linear"),
    ),
    "fvcore": Rule(
        "all that fvcore counts: conv_fc, matrix products, and its estimates for normalisation, average pooling and "
        "resizing",
        lambda count: count.sum("macs"),
    ),
    "hetconv_scaled_bias": Rule(
        "conv_fc, and one addition per output element of each convolution, whether it has a bias or not; HetConv "
        "scales both by 1/P + (1 - 1/P)/K^2, and a pair of convolutions has the addition in its first",
        lambda count: count.sum("macs", "conv", "linear") + count.sum("scaled_bias", "conv"),
    ),
    "senet": Rule(
        "conv_fc, one operation for each element of a residual addition, and one for each element that "
        "squeeze-and-excitation scales",
        lambda count: count.sum("macs", "conv", "linear") + count.sum("additions") + count.sum("scalings"),
    ),
    "senet_biases": Rule(
        "hetconv_scaled_bias, which has one operation for each output of a convolution (its bias, or that of its batch "
        "norm), and one operation for each element that squeeze-and-excitation scales",
        lambda count: RULES["hetconv_scaled_bias"](count) + count.sum("scalings"),
    ),
    "params": Rule(
        "all parameters, including those of normalisation and frozen ones; no buffers",
        lambda count: count.sum("params"),
        "parameters",
    ),
    "params_no_norm": Rule(
        "parameters of convolutions and linear layers with their biases",
        lambda count: count.sum("params", "conv", "linear"),
        "parameters",
    ),
    "weights": Rule(
        "weights of convolutions and linear layers; no biases, no normalisation",
        lambda count: count.sum("weights", "conv", "linear"),
        "parameters",
    ),
    "conv_weights": Rule(
        "weights of the convolutions that conv_only counts; no biases",
        lambda count: count.convolutions().sum("weights"),
        "parameters",
    ),
    "params_no_fc": Rule(
        "all parameters except those of linear layers",
        lambda count: count.sum("params") - count.sum("params", "linear"),
        "parameters",
    ),
    "params_and_buffers": Rule(
        "all parameters, and the running statistics of normalisation",
        lambda count: count.sum("params") + count.sum("statistics"),
        "parameters",
    ),
    "multiplications": Rule(
        "multiplications left in convolutions, linear layers and matrix products",
        lambda count: count.sum("multiplications"),
    ),
    "shifts": Rule("bit shifts that replace multiplications", lambda count: count.sum("shifts"), "shifts"),
    "weight_bits": Rule(
        "bits of the deployed weights of convolutions and linear layers; no biases",
        lambda count: count.sum("weight_bits", "conv", "linear"),
        "bits",
    ),
}
"""The counting rules, keyed by the name that the metric of a table gives in `count:`."""
