"""ShuffleNet against printed counts, and against its definition written out."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.complexity import count
from convrepro.errors import ConvReproError
from convrepro.models.zoo.shufflenet_v1 import CHANNELS, ShuffleUnit
from convrepro.ops import SqueezeExcite


def totals(*rules: str, **model_args: object) -> list[int]:
    counted = count(timm.create_model("shufflenet_v1", **model_args), (3, 224, 224))
    return [counted.total(rule) for rule in rules]


@pytest.mark.parametrize(
    ("groups", "convolutions", "printed"),
    [
        (1, 142_502_976, 143),
        (2, 140_036_512, 140),
        (3, 136_500_672, 137),
        (4, 133_251_776, 133),
        (8, 136_829_952, 137),
    ],
)
def test_table_1(groups, convolutions, printed):
    assert totals("conv_only", groups=groups) == [convolutions]
    assert round(convolutions / 1e6) == printed


@pytest.mark.parametrize(
    ("groups", "width", "macs", "weights", "printed"),
    [
        (3, 2, 524_045_184, 5_400_816, 524),
        (8, 2, 521_942_016, 6_442_896, 522),
        (3, 1.5, 292_443_552, 3_404_448, 292),
        (8, 1.5, 290_188_800, 4_210_200, 290),
        (3, 0.5, 37_589_856, 705_084, 38),
        (8, 0.5, 40_469_760, 990_864, 40),
    ],
)
def test_scaled_networks_of_the_authors_readme(groups, width, macs, weights, printed):
    assert totals("conv_fc", "weights", groups=groups, width=width) == [macs, weights]
    assert round(macs / 1e6) == printed


@pytest.mark.parametrize("groups", CHANNELS)
@pytest.mark.parametrize(("width", "budget"), [(0.5, 38), (0.25, 13)])
def test_small_networks_keep_the_paper_s_budget(groups, width, budget):
    (macs,) = totals("conv_fc", groups=groups, width=width)
    assert macs / 1e6 == pytest.approx(budget, rel=0.08)


def test_last_stage_at_half_width_with_four_groups_has_the_paper_s_576_channels():
    model = timm.create_model("shufflenet_v1", groups=4, width=0.5)
    assert [model.units[i].bn3.num_features for i in (1, 5, 13)] == [144, 288, 576]


def test_squeeze_excite_costs_what_the_arithmetic_says():
    """Gates of 2 C^2 / 16 before the additions, 3, 7 and 3 in stages 2 to 4; SENet prints 2.4 M parameters."""
    additions = [(240, 28)] * 3 + [(480, 14)] * 7 + [(960, 7)] * 3
    gates = sum(2 * c * c // 16 for c, _ in additions)
    added = sum(c * side**2 for c, side in additions)
    plain = totals("conv_fc", "weights", "senet")
    gated = totals("conv_fc", "weights", "senet", se_reduction=16)
    assert plain == [137_460_672, 1_840_248, 137_460_672 + added]
    assert gated == [137_460_672 + gates, 2_409_048, 137_460_672 + gates + 2 * added]


@pytest.mark.parametrize(("shuffle", "reached"), [(True, {0, 1, 2}), (False, {1})])
def test_without_the_shuffle_a_group_sees_itself_only(shuffle, reached):
    torch.manual_seed(0)
    unit = ShuffleUnit(24, 36, 1, groups=3, first_groups=3, shuffle=shuffle, se_reduction=None).eval()
    unit.act2 = nn.Identity()
    x = torch.randn(1, 24, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="size of tensor"):
        unit(x)  # 24 channels cannot be added to 36
    branch = unit.conv3(unit.bn2(unit.conv2(unit.shuffle(unit.act1(unit.bn1(unit.conv1(x)))))))
    (gradient,) = torch.autograd.grad(branch[:, 12:24].square().sum(), x)
    assert {int(c) // 8 for c in gradient.abs().sum((0, 2, 3)).nonzero()} == reached


def by_definition(unit: ShuffleUnit, x: Tensor, groups: int, first_groups: int, stride: int, shuffle: bool) -> Tensor:
    """Figure 2 (b) and (c), each convolution group by group."""

    def grouped(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, groups: int, **kwargs: int) -> Tensor:
        parts = [F.conv2d(p, w, **kwargs) for p, w in zip(x.chunk(groups, 1), conv.weight.chunk(groups), strict=True)]
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        shift = norm.bias - norm.running_mean * scale
        return torch.cat(parts, 1) * scale[:, None, None] + shift[:, None, None]

    y = grouped(x, unit.conv1, unit.bn1, first_groups).relu()
    if shuffle:
        each = y.shape[1] // groups
        y = torch.stack([y[:, g * each + i] for i in range(each) for g in range(groups)], 1)
    y = grouped(y, unit.conv2, unit.bn2, y.shape[1], stride=stride, padding=1)
    y = grouped(y, unit.conv3, unit.bn3, groups)
    if stride == 1:
        return (x + y).relu()
    pooled = F.conv2d(x.flatten(0, 1)[:, None], torch.full((1, 1, 3, 3), 1 / 9), stride=2, padding=1)
    return torch.cat([pooled.unflatten(0, x.shape[:2])[:, :, 0], y], 1).relu()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("groups", "width"), [(1, 0.25), (3, 0.25), (4, 0.5), (8, 0.25)])
def test_each_unit_equals_its_definition(groups, width, shuffle):
    torch.manual_seed(0)
    model = timm.create_model("shufflenet_v1", num_classes=5, groups=groups, width=width, shuffle=shuffle).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64))  # running statistics other than 0 and 1
        model.eval()
        x = torch.randn(2, 3, 64, 96)
        y = F.max_pool2d(model.bn1(F.conv2d(x, model.conv1.weight, stride=2, padding=1)).relu(), 3, 2, 1)
        for index, unit in enumerate(model.units):
            y = by_definition(unit, y, groups, groups if index else 1, 2 if index in (0, 4, 12) else 1, shuffle)
        logits = y.mean((2, 3)) @ model.linear.weight.T + model.linear.bias
        torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-5)


def test_squeeze_excite_scales_before_the_addition():
    torch.manual_seed(0)
    unit = ShuffleUnit(24, 24, 1, groups=3, first_groups=3, shuffle=True, se_reduction=4).eval()
    x = torch.randn(2, 24, 8, 8)
    with torch.no_grad():
        gated = unit(x)
        gate, unit.se = unit.se, nn.Identity()
        unit.act2 = nn.Identity()
        branch = unit(x) - x
    assert isinstance(gate, SqueezeExcite)
    torch.testing.assert_close(gated, (x + gate(branch)).relu())
    joined = ShuffleUnit(24, 60, 2, groups=3, first_groups=1, shuffle=True, se_reduction=16)
    assert not any(isinstance(m, SqueezeExcite) for m in joined.modules())


def test_weights_are_drawn_with_the_variance_of_resnext_s_code():
    torch.manual_seed(0)
    for layer in timm.create_model("shufflenet_v1", groups=8).modules():
        if isinstance(layer, nn.Conv2d):
            deviation = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
            spread = 5 / (2 * layer.weight.numel()) ** 0.5  # five standard errors of a standard deviation
            assert layer.weight.std().item() == pytest.approx(deviation, rel=spread)


@pytest.mark.parametrize(
    ("model_args", "words"),
    [
        ({"groups": 5}, "groups=5 is not a number of groups in the paper; valid: 1, 2, 3, 4, 8"),
        ({"width": 0}, "width=0 must be above 0"),
        ({"pretrained": True}, "no weights for shufflenet_v1"),
    ],
)
def test_what_cannot_be_built_is_named(model_args, words):
    with pytest.raises(ConvReproError, match=words):
        timm.create_model("shufflenet_v1", **model_args)
