"""Counting rules by hand, and the numbers of HetConv's tables (arXiv 1903.04120) from the paper's own formula.

The formula charges a standard convolution D^2 N (M K^2 + 1), where 1 is the bias, and a HetConv layer the whole of that
times 1/P + (1 - 1/P)/K^2; fully connected layers M N; nothing else.
"""

import json
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from convrepro.complexity import count
from convrepro.complexity.rules import RULES, Count, LayerCount
from convrepro.errors import ConvReproError
from convrepro.models.build import build

pytestmark = pytest.mark.unit

NET = Count(
    (3, 8, 8),
    (
        LayerCount("", "other", "Net", params=1, additions=6, scalings=2, weight_bits=32),
        LayerCount("a", "conv", "HetConv2d", 3, 4, (3, 3), bias=True, out_h=5, out_w=6, macs=100, dense_macs=300,
                   scaled_bias=Fraction(7, 3), multiplications=100, params=20, weights=16, weight_bits=640),
        LayerCount("b", "conv", "ShiftConv2d", 4, 4, (1, 1), groups=2, macs=40, dense_macs=40, scaled_bias=9,
                   shifts=40, params=8, weights=8, weight_bits=40),
        LayerCount("norm", "norm", "BatchNorm2d", macs=16, params=8, weights=4, statistics=9, weight_bits=128),
        LayerCount("pool", "pool", "SqueezeExcite", macs=4, scalings=5),
        LayerCount("c", "linear", "Linear", 4, 5, macs=20, multiplications=20, params=25, weights=20, weight_bits=640),
        LayerCount("d", "matmul", "Attention", macs=3, multiplications=3),
        LayerCount("relu", "other", "ReLU"),
    ),
)  # fmt: skip


TOTALS = {
    "macs": 163,
    "conv_fc": 160,
    "conv_only": 140,
    "two_per_mac": 320,
    "fvcore": 183,
    "hetconv_scaled_bias": 160 + 9 + Fraction(7, 3),
    "senet": 160 + 6 + 2 + 5,
    "senet_biases": 160 + 9 + Fraction(7, 3) + 2 + 5,
    "params": 62,
    "params_no_norm": 53,
    "weights": 44,
    "conv_weights": 24,
    "params_no_fc": 37,
    "params_and_buffers": 71,
    "multiplications": 123,
    "shifts": 40,
    "weight_bits": 1320,
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_by_hand(rule):
    assert NET.total(rule) == RULES[rule](NET) == TOTALS[rule]
    assert isinstance(NET.total(rule), int | Fraction)
    assert RULES[rule].description


def test_an_unknown_rule_is_refused_with_the_valid_ones():
    with pytest.raises(ConvReproError, match="'flops' is unknown; valid: macs, conv_fc, "):
        NET.total("flops")


def test_a_part_is_the_layers_that_fit_a_pattern():
    assert [layer.name for layer in NET.part("norm a*").layers] == ["a", "norm"]
    assert NET.part("[ab]").total("conv_weights") == NET.total("conv_weights")
    assert NET.part("a").input_size == NET.input_size


def test_a_pattern_that_no_layer_fits_is_refused_with_names():
    with pytest.raises(ConvReproError, match=r"no layer fits 'norms\*'; there are norm"):
        NET.part("a norms*")


def test_a_convolution_with_one_output_position_is_a_fully_connected_layer():
    fc = LayerCount("fc6", "conv", "Conv2d", 512, 4096, (7, 7), out_h=1, out_w=1, macs=1000, weights=1000)
    with_fc = Count(NET.input_size, (*NET.layers, fc))
    for rule in ("conv_only", "conv_weights"):
        assert with_fc.total(rule) == NET.total(rule)
    assert with_fc.total("conv_fc") == NET.total("conv_fc") + 1000


def test_the_dictionary_is_exact_json():
    data = json.loads(json.dumps(NET.to_dict()))
    assert data["input_size"] == [3, 8, 8]
    assert {rule: Fraction(total) for rule, total in data["totals"].items()} == {r: NET.total(r) for r in RULES}
    assert data["totals"]["hetconv_scaled_bias"] == "514/3"
    rebuilt = [
        LayerCount(**{**layer, "kernel": tuple(layer["kernel"]), "scaled_bias": Fraction(layer["scaled_bias"])})
        for layer in data["layers"]
    ]
    assert tuple(rebuilt) == NET.layers


def test_the_table_is_aligned_and_adds_up():
    header, line, *rows = NET.table().splitlines()
    assert set(line) == {"-"}
    assert len({len(row) for row in [header, line, *rows]}) == 1
    named = "(model) a b norm pool c d"
    kinds = "other conv norm pool linear matmul total"
    assert [row.split()[0] for row in rows if row != line] == f"{named} {kinds}".split()
    a, total = rows[1].split(), rows[-1].split()
    assert a == ["a", "HetConv2d", "3", "->", "4", "3x3", "5x6", "20", "100", "61.35", "0", "640"]
    assert total == ["total", "62", "163", "100.00", "40", "1,480"]
    norm = next(row for row in rows if row.startswith("norm"))
    assert norm.split() == ["norm", "BatchNorm2d", "8", "0", "128"]  # fvcore's estimate is no MAC
    assert "1x1 /2" in rows[2]


def test_the_summary_has_all_digits_and_one_total():
    own, whole = NET.summary().splitlines()
    assert own == "163 MACs (163), 62 parameters (62) at 3x8x8"
    assert whole == "fvcore's own total, with its estimates for norm, pool: 183"
    alone = Count((3, 224, 224), (LayerCount("a", "conv", "Conv2d", macs=15_470_264_320, params=12_345),))
    assert alone.summary() == "15,470,264,320 MACs (15.47 G), 12,345 parameters (12.35 k) at 3x224x224"


def test_a_convolution_to_one_position_has_its_size():
    layer = LayerCount("a", "conv", "Conv2d", 3, 4, (1, 1), out_h=1, out_w=1, macs=12)
    assert " 1x1     1x1 " in Count((3, 1, 1), (layer,)).table()


def test_the_table_shows_bits_only_beside_shifts():
    plain = Count((3, 8, 8), tuple(layer for layer in NET.layers if not layer.shifts))
    assert "bits" not in plain.table()
    assert "shifts" not in plain.table()


@pytest.mark.parametrize(
    ("macs", "shifts", "text"),
    [
        (15_470_264_320, 0, "15.47 G MACs, 0 parameters at 3x224x224"),
        (999, 0, "999 MACs, 0 parameters at 3x224x224"),
        (2_293_000, 573_250, "2.29 M MACs (25.0 % shifts), 0 parameters at 3x224x224"),
    ],
)
def test_the_headline(macs, shifts, text):
    layer = LayerCount("a", "conv", "Conv2d", macs=macs, shifts=shifts)
    assert Count((3, 224, 224), (layer,)).headline() == text


@pytest.mark.heavy
def test_rules_are_known_without_torch():
    code = "import sys, convrepro.complexity.rules; assert not {'torch', 'fvcore'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def ratio(p, kernel=3):
    return Fraction(1, p) + (1 - Fraction(1, p)) / kernel**2


def standard(channels, filters, side, kernel=3):
    return side**2 * filters * (channels * kernel**2 + 1)


VGG = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 256, 8)]
VGG += [(256, 512, 4), (512, 512, 4), (512, 512, 4)] + [(512, 512, 2)] * 3
VGG_LINEAR = 512 * 512 + 512 * 10
RESNET = [(16, 16, 32)] * 18 + [(16, 32, 16)] + [(32, 32, 16)] * 17 + [(32, 64, 8)] + [(64, 64, 8)] * 17
MOBILENET = [(32, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4)]
MOBILENET += [(512, 512, 4)] * 5 + [(512, 1024, 2), (1024, 1024, 2)]


def counted(model, conv, where="dense_kxk", size=32, classes=10, model_args=None, **knobs):
    conv = {"name": conv, "where": where, **knobs}
    with torch.device("meta"):
        network, _ = build(model, conv=conv, num_classes=classes, model_args=model_args or {})
    return count(network.to_empty(device="cpu"), (3, size, size))


@pytest.mark.parametrize(
    ("p", "printed", "params"),
    [
        (1, 313_740_288, 14_982_474),
        (2, 175_234_503, 8_445_258),
        (4, 105_981_611, 5_176_650),
        (8, 71_355_164, 3_542_346),
        (16, 54_041_941, 2_725_194),
        (32, 45_385_330, 2_316_618),
        (64, 41_057_024, 2_112_330),
        ("out", 38_188_484, 1_937_738),
    ],
)
def test_vgg_of_table_1(p, printed, params):
    total = standard(*VGG[0]) + VGG_LINEAR
    total += sum(standard(m, n, side) * ratio(n if p == "out" else p) for m, n, side in VGG[1:])
    network = counted("vgg16_cifar", "hetconv", p=p)
    assert network.total("hetconv_scaled_bias") == total
    assert round(total) == printed
    assert network.total("params_no_norm") == params
    assert network.total("params") == params + 2 * (sum(n for _, n, _ in VGG) + 512)


def test_vgg_without_an_operator_is_hetconv_at_p_1():
    assert (
        counted("vgg16_cifar", "standard").to_dict()["totals"]
        == counted("vgg16_cifar", "hetconv", p=1).to_dict()["totals"]
    )


@pytest.mark.parametrize(("conv", "groups", "printed"), [("gwc_pwc", 4, 107_666_432), ("dwc_pwc", None, 38_528_000)])
def test_separable_vgg_of_table_1(conv, groups, printed):
    total = standard(*VGG[0]) + VGG_LINEAR
    total += sum(d * d * (9 * m * m // (groups or m) + m + m * n) for m, n, d in VGG[1:])
    knobs = {"num_groups": groups} if groups else {}
    assert counted("vgg16_cifar", conv, **knobs).total("hetconv_scaled_bias") == total == printed


def test_squeeze_and_excitation_adds_its_linear_layers():
    plain, with_se = (counted("vgg16_cifar", "hetconv", p=4, model_args=a) for a in ({}, {"se_reduction": 8}))
    added = with_se.total("hetconv_scaled_bias") - plain.total("hetconv_scaled_bias")
    assert added == sum(2 * n * n // 8 for _, n, _ in VGG) == 452_608


@pytest.mark.heavy
@pytest.mark.parametrize(("p", "printed"), [(1, 126_018_176), (2, 70_214_272), (4, 42_312_320)])
def test_resnet56_of_table_3(p, printed):
    total = standard(3, 16, 32) + 64 * 10 + sum(standard(*layer) * ratio(p) for layer in RESNET)
    assert counted("resnet56_cifar", "hetconv", p=p).total("hetconv_scaled_bias") == total == printed


def test_mobilenet_of_table_4_is_counted_without_biases():
    first_and_last = 32 * 32 * 32 * 27 + 1024 * 10
    pairs = sum(
        side**2 * (side_in**2 // side**2) * 0 + m * (9 * side**2) + side**2 * m * n for m, n, side, side_in in []
    )
    pairs = sum(side**2 * (9 * m + m * n) for m, n, side in MOBILENET)
    heterogeneous = sum(side**2 * 9 * m * n * ratio(32) for m, n, side in MOBILENET)
    assert counted("mobilenet_v1_cifar", "standard").total("conv_fc") == first_and_last + pairs == 46_354_432
    replaced = counted("mobilenet_v1_cifar", "hetconv", "dw_pw_pair", p=32)
    assert replaced.total("conv_fc") == first_and_last + heterogeneous == 55_945_216


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "rule", "standard_macs", "p4"),
    [
        ("vgg16", "conv_fc", 15_470_264_320, 5_296_979_968),
        ("resnet34", "conv_fc", 3_663_761_408, 1_313_116_160),
        ("resnet50", "conv_only", 4_087_136_256, 2_854_010_880),
    ],
)
def test_imagenet_networks(model, rule, standard_macs, p4):
    network = counted(model, "standard", size=224, classes=1000)
    assert network.total(rule) == standard_macs
    replaced = sum(
        layer.macs
        for layer in network.layers
        if layer.kernel == (3, 3) and layer.in_channels > 3 and "pre_logits" not in layer.name
    )
    assert p4 == standard_macs - replaced * (1 - ratio(4))
    assert counted(model, "hetconv", size=224, classes=1000, p=4).total(rule) == p4
