"""One entry for each operator variant; the tests of `convrepro.testing` run on every entry."""

from typing import Any

import torch
from torch import nn

from convrepro.ops import (
    DepthwisePointwise,
    GroupPointwise,
    HetConv2d,
    IGCV1Conv2d,
    IGCV2Conv2d,
    IGCV3Conv2d,
    LowPrecisionConv2d,
    LowRankConv2d,
    ShiftConv2d,
    SparseConv2d,
)
from convrepro.testing import OperatorCase


def count_paths(operator: nn.Module) -> torch.Tensor:
    """(N, C): the number of ways from each channel to each filter of an operator with 1x1 kernels; sets its weights."""
    with torch.no_grad():
        for name, parameter in operator.named_parameters():
            parameter.fill_(0 if name.endswith("bias") else 1)
        return operator.forward_exact(torch.eye(operator.in_channels)[..., None, None])[..., 0, 0].T


def hetconv_case(p: int | str, arrangement: str, in_channels: int = 8, out_channels: int = 12) -> OperatorCase:
    return OperatorCase(
        name=f"hetconv-{p}-{arrangement}-{in_channels}-{out_channels}",
        operator=HetConv2d,
        knobs={"p": p, "arrangement": arrangement},
        in_channels=in_channels,
        out_channels=out_channels,
        degenerate={"p": 1, "arrangement": arrangement} if p == 2 and in_channels > 1 else None,
        bad=(
            (
                {"p": 5},
                ("p=5", "divide", f"out_channels={out_channels}", f"in_channels={in_channels}", "valid: 1, 2, "),
            ),
            ({"p": 0}, ("p=0", "divide", "valid: 1, 2, ")),
            ({"p": "in"}, ("p='in'", "'out'")),
            ({"arrangement": "cyclic"}, ("arrangement='cyclic'", "contiguous, shifted")),
            ({"groups": 2, "p": 1}, ("groups=2", "valid: 1")),
            ({"kernel_size": (3, 2)}, ("kernel_size=(3, 2)", "odd", "valid: 1, 3, 5")),
        ),
        weights=lambda module: int(module.dense_weight().count_nonzero()),
    )


def shift_case(name: str, **own: Any) -> OperatorCase:
    return OperatorCase(
        name=name,
        operator=ShiftConv2d,
        knobs=own,
        bad=(
            ({"variant": "PS"}, ("variant='PS'", "valid: q, ps, v1")),
            ({"variant": "q", "bits": 7, "frozen": False}, ("bits=7", "variant='q'", "'paper', 2, 3, 4, 5, 6")),
            ({"variant": "v1", "bits": 5}, ("bits=5", "no limits", "'paper', None")),
            ({"activation": "int8"}, ("activation='int8'", "'paper', 'float', [integer_bits, fraction_bits]")),
            ({"rounding": "nearest"}, ("rounding='nearest'", "deterministic, stochastic")),
            ({"variant": "q", "frozen": True}, ("frozen=True", "variant='v1'", "valid: False")),
            ({"groups": 3}, ("groups=3", "divide")),
        ),
        weights=lambda module: int(module.quantized_weight().count_nonzero()),
    )


def igcv1_case(name: str, **own: Any) -> OperatorCase:
    return OperatorCase(
        name=name,
        operator=IGCV1Conv2d,
        knobs=own,
        degenerate={"primary_partitions": 1} if name == "igcv1" else None,
        bad=(
            ({"primary_partitions": 3}, ("primary_partitions=3", "in_channels=8", "out_channels=12", "valid: 1, 2, 4")),
            (
                {"primary_partitions": 2, "secondary_partitions": 4},
                ("secondary_partitions=4", "divide", "= 6", "valid: 1, 2, 3, 6, or None"),
            ),
            ({"primary_partitions": 4.0}, ("primary_partitions=4.0", "divide", "valid: 1, 2, 4")),
            ({"primary_partitions": 2, "secondary_partitions": 3.0}, ("secondary_partitions=3.0", "valid: 1, 2, 3, 6")),
            ({"secondary": "max"}, ("secondary='max'", "valid: learned, sum")),
            ({"form": "fused"}, ("form='fused'", "valid: auto, plain, folded")),
            (
                {"primary_partitions": 2, "secondary": "sum", "secondary_partitions": 3},
                ("secondary_partitions=3", "one channel of each", "valid: 6, or None"),
            ),
            ({"groups": 2}, ("groups=2", "valid: 1")),
        ),
    )


def igcv2_case(name: str, out_channels: int = 12, **own: Any) -> OperatorCase:
    return OperatorCase(
        name=name,
        operator=IGCV2Conv2d,
        knobs=own,
        out_channels=out_channels,
        bad=(
            ({"branch_channels": None, "layers": 1}, ("layers=1", "at least 2")),
            ({"form": "fused"}, ("form='fused'", "valid: auto, plain, folded")),
            (
                {"branch_channels": None, "layers": 5, "complementary": True},
                ("layers=5", "in_channels=8", "4 factors", "valid: 2, 3, 4"),
            ),
            ({"branch_channels": (8,), "layers": 3}, ("branch_channels=[8]", "layers - 1", "layers=3")),
            ({"branch_channels": (3, 2), "layers": None}, ("branch_channels=[3, 2]", "divide", "valid: 2, 4, 8")),
            ({"branch_channels": (4.0, 2), "layers": None}, ("branch_channels=[4.0, 2]", "divide", "valid: 2, 4, 8")),
            ({"branch_channels": 8}, ("branch_channels=8", "a number for each 1x1", "], ..., or None")),
            (
                {"branch_channels": (2, 2), "layers": None, "complementary": True},
                ("branch_channels=[2, 2]", "in_channels=8", "not 4", "complementary=False"),
            ),
            ({"branch_channels": None, "complementary": False}, ("complementary=False", "branch_channels")),
            (
                {"channel_multiplier": True, "out_channels": 20},
                ("channel_multiplier=True", "out_channels=20", "in_channels=8", "valid: False"),
            ),
            ({"groups": 2}, ("groups=2", "valid: 1")),
        ),
    )


def igcv3_case(name: str, **own: Any) -> OperatorCase:
    def products(module: nn.Module, out_h: int, out_w: int) -> int:
        """The first convolution acts on the input: the largest that has this output."""
        conv = nn.Conv2d(1, 1, module.kernel_size, module.stride, module.padding, module.dilation)
        shapes = {n: conv(torch.zeros(1, n, n)).shape[1:] for n in range(9, 20)}
        in_h = max(n for n, shape in shapes.items() if shape[0] == out_h)
        in_w = max(n for n, shape in shapes.items() if shape[1] == out_w)
        after = module.weight_depthwise.numel() + module.weight_project.numel()
        return in_h * in_w * module.weight_expand.numel() + out_h * out_w * after

    return OperatorCase(
        name=name,
        operator=IGCV3Conv2d,
        knobs=own,
        bad=(
            ({"expansion": 0}, ("expansion=0", "valid: 1, 2")),
            ({"expansion": 1.5}, ("expansion=1.5", "integer")),
            ({"form": "fused"}, ("form='fused'", "valid: auto, plain, folded")),
            ({"groups_in": 3}, ("groups_in=3", "in_channels=8", "valid: 1, 2, 4, 8")),
            ({"groups_in": 2.0}, ("groups_in=2.0", "in_channels=8", "valid: 1, 2, 4, 8")),
            ({"groups_out": 5}, ("groups_out=5", "out_channels=12", "valid: 1, 2, 3, 4, 6, 12")),
            (
                {"expansion": 1, "groups_in": 4, "groups_out": 4},
                ("groups_out=4", "groups_in=4", "expansion * in_channels = 8", "valid: 1, 2"),
            ),
            ({"groups": 2}, ("groups=2", "valid: 1")),
        ),
        products=products,
    )


def low_precision_case(name: str, **own: Any) -> OperatorCase:
    def only(precision: str, **words: int) -> dict[str, Any]:
        return {"precision": precision, "bits": None, "clusters": None, "activation_bits": None, **words}

    return OperatorCase(
        name=f"low_precision-{name}",
        operator=LowPrecisionConv2d,
        knobs=own,
        bad=(
            ({"precision": "int8"}, ("precision='int8'", "valid: binary, ternary, xnor, fixed, shared")),
            (only("fixed", bits=1), ("bits=1", "valid: None (8), 2 to 16")),
            (only("shared", clusters=257), ("clusters=257", "valid: None (16), 2 to 256")),
            (only("ternary", bits=2), ("bits=2", "precision='fixed', not of 'ternary'", "valid: None")),
            (only("fixed", clusters=4), ("clusters=4", "precision='shared', not of 'fixed'", "valid: None")),
            (only("xnor", activation_bits=1), ("activation_bits=1", "precision='fixed'", "valid: None")),
            ({"groups": 3}, ("groups=3", "divide")),
        ),
        weights=lambda module: 12 * 8 * module.kernel_size[0] * module.kernel_size[1],
        multiplies=name.startswith("fixed"),
    )


def spatial_macs(module: nn.Module, out_h: int, out_w: int) -> int:
    """For the words of the test, in which the input is 12 wide: with stride 2 no window reaches its last column."""
    between = 11 if module.stride[1] == 2 else 12
    return out_h * (between * module.weight_first.numel() + out_w * module.weight_second.numel())


def low_rank_case(rank: int | float, scheme: str) -> OperatorCase:
    return OperatorCase(
        name=f"low_rank-{scheme}-{rank}",
        operator=LowRankConv2d,
        knobs={"rank": rank, "scheme": scheme},
        degenerate={"rank": 1.0, "scheme": scheme} if isinstance(rank, float) else None,
        bad=(
            ({"rank": 0}, ("rank=0", "valid: an integer from 1 to ", "(0, 1]")),
            ({"rank": 40}, ("rank=40", f"valid: an integer from 1 to {12 if scheme == 'channel' else 24},")),
            ({"rank": 1.5}, ("rank=1.5", "valid: an integer from 1 to ", "(0, 1]")),
            ({"rank": None}, ("rank=None", "valid: an integer from 1 to ")),
            ({"energy": 0.9}, (f"rank={rank}", "energy=0.9", "valid: one of them None")),
            ({"rank": None, "energy": 0.9}, ("energy=0.9", "start from weights")),
            ({"rank": None, "energy": 1.1}, ("energy=1.1", "valid: a number in (0, 1]")),
            ({"scheme": "tucker"}, ("scheme='tucker'", "valid: channel, spatial")),
            ({"groups": 2}, ("groups=2", "valid: 1")),
        ),
        products=spatial_macs if scheme == "spatial" else None,
    )


def sparse_case(density: float, structure: str, **words: Any) -> OperatorCase:
    return OperatorCase(
        name=f"sparse-{structure}-{density}",
        operator=SparseConv2d,
        knobs={"density": density, "structure": structure},
        degenerate={"density": 1.0, "structure": structure},
        bad=(
            ({"density": 0}, ("density=0", "valid: a number in (0, 1]")),
            ({"density": 1.01}, ("density=1.01", "valid: a number in (0, 1]")),
            ({"density": True}, ("density=True", "valid: a number in (0, 1]")),
            ({"density": 0.3, "structure": "block"}, ("density=0.3", "valid: 1/1, 1/2, 1/4")),
            ({"structure": "rows"}, ("structure='rows'", "valid: unstructured, block")),
            ({"groups": 3}, ("groups=3", "divide")),
        ),
        **words,
    )


CASES = [
    hetconv_case(1, "contiguous"),
    hetconv_case(2, "contiguous"),
    hetconv_case(2, "shifted"),
    hetconv_case("out", "contiguous", 8, 16),
    hetconv_case("out", "shifted", 8, 8),
    hetconv_case(8, "shifted", 4, 16),
    hetconv_case(2, "contiguous", 1, 4),
    OperatorCase(
        name="gwc_pwc",
        operator=GroupPointwise,
        knobs={"num_groups": 4},
        bad=(
            ({"num_groups": 3}, ("num_groups=3", "divide", "in_channels=8", "valid: 1, 2, 4, 8")),
            ({"num_groups": 4.0}, ("num_groups=4.0", "divide", "in_channels=8", "valid: 1, 2, 4, 8")),
            ({"groups": 2}, ("groups=2", "valid: 1")),
        ),
    ),
    OperatorCase(
        name="dwc_pwc",
        operator=DepthwisePointwise,
        degenerate={"kernel_size": 1},
        bad=(({"groups": 2}, ("groups=2", "valid: 1")),),
    ),
    shift_case("shift-q", variant="q"),
    shift_case("shift-ps", variant="ps", bits=3),
    shift_case("shift-v1", variant="v1"),
    shift_case("shift-v1-frozen", variant="v1", frozen=True),
    shift_case("shift-float", variant="q", activation="float", clamp_latent=False),
    low_precision_case("binary"),
    low_precision_case("ternary", precision="ternary"),
    low_precision_case("xnor", precision="xnor"),
    low_precision_case("fixed", precision="fixed", bits=16),
    low_precision_case("fixed-inputs", precision="fixed", bits=8, activation_bits=8),
    low_precision_case("shared", precision="shared", clusters=5),
    low_rank_case(0.25, "channel"),
    low_rank_case(5, "channel"),
    low_rank_case(0.5, "spatial"),
    sparse_case(0.3, "unstructured"),
    sparse_case(0.25, "block"),
    igcv1_case("igcv1", primary_partitions=2),
    igcv1_case("igcv1-4", primary_partitions=4),
    igcv1_case("igcv1-fewer-secondary", primary_partitions=2, secondary_partitions=3),
    igcv1_case("igcv1-dense-secondary", primary_partitions=4, secondary_partitions=1),
    igcv1_case("igcv1-sum", primary_partitions=4, secondary="sum"),
    igcv1_case("igcv1-plain", primary_partitions=4, form="plain"),
    igcv1_case("igcv1-folded", primary_partitions=2, form="folded"),
    igcv2_case("igcv2"),
    igcv2_case("igcv2-4-layers", layers=4),
    igcv2_case("igcv2-2-layers", layers=2),
    igcv2_case("igcv2-multiplier", out_channels=16, branch_channels=(4, 2), channel_multiplier=True),
    igcv2_case("igcv2-incomplete", branch_channels=(2, 2), complementary=False),
    igcv2_case("igcv2-plain", form="plain"),
    igcv2_case("igcv2-folded", form="folded"),
    igcv3_case("igcv3"),
    igcv3_case("igcv3-groups", expansion=2, groups_in=8, groups_out=2),
    igcv3_case("igcv3-dense", expansion=1, groups_in=1, groups_out=1),
    igcv3_case("igcv3-plain", form="plain"),
    igcv3_case("igcv3-folded", groups_in=2, groups_out=4, form="folded"),
]
