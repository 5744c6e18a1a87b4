"""Counts against arithmetic by hand, against torch's own counter, and the model against itself before and after."""

import logging
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from convrepro.complexity import MULTIPLYING, count, cross_check
from convrepro.errors import ConvReproError
from convrepro.ops import DepthwisePointwise, GroupPointwise, HetConv2d, ShiftConv2d, ShiftLinear, SqueezeExciteConv

pytestmark = pytest.mark.unit


class Function(nn.Module):
    """A module whose forward pass is `function(module, x)`; keyword arguments are its submodules."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def layers(model, input_size):
    return {(layer.name, layer.kind): layer for layer in count(model, input_size).layers}


def test_each_layer_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 3x10x12 -> 8x5x6
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, (1, 3), groups=4, bias=False),  # -> 12x5x4
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 7),
    )
    conv, norm, relu, grouped, pool, flatten, linear = count(model, (3, 10, 12)).layers[1:]
    kinds = [layer.kind for layer in (conv, norm, relu, grouped, pool, flatten, linear)]
    assert kinds == ["conv", "norm", "other", "conv", "pool", "other", "linear"]
    assert conv.macs == conv.dense_macs == conv.multiplications == 5 * 6 * 8 * 3 * 9
    assert (conv.out_h, conv.out_w, conv.kernel, conv.bias, conv.calls) == (5, 6, (3, 3), True, 1)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (3, 8, 1)
    assert (conv.params, conv.weight_bits, conv.scaled_bias) == (8 * 27 + 8, 32 * 8 * 27, 8 * 5 * 6)
    assert (norm.macs, norm.params, norm.multiplications) == (2 * 8 * 5 * 6, 16, 0)
    assert grouped.macs == grouped.dense_macs == 5 * 4 * 12 * 2 * 3
    assert (grouped.groups, grouped.bias, grouped.params) == (4, False, 12 * 2 * 3)
    assert pool.macs == 12 * 5 * 4
    assert relu.macs == flatten.macs == relu.params == 0
    assert (linear.macs, linear.params, linear.weight_bits, linear.scaled_bias) == (84, 84 + 7, 32 * 84, 0)
    assert (linear.in_channels, linear.out_channels, linear.out_h, linear.out_w) == (12, 7, 1, 1)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding="valid", dilation=2),
        nn.Conv2d(4, 6, (5, 1), stride=(1, 3), groups=2, padding=2, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
    ],
    ids=str,
)
def test_a_convolution_has_one_mac_for_each_output_and_each_weight_of_its_filter(conv):
    outputs = conv(torch.zeros(1, 4, 9, 11)).numel()
    (layer,) = count(conv, (4, 9, 11)).layers
    assert layer.macs == layer.multiplications == outputs * conv.weight[0].numel()
    assert (layer.scaled_bias, layer.out_h * layer.out_w * layer.out_channels) == (outputs, outputs)
    cross_check(conv, (4, 9, 11))


def test_a_transposed_convolution_has_one_mac_for_each_input_position_and_weight():
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
    counted = cross_check(conv, (4, 5, 7))
    assert counted.total("macs") == 5 * 7 * conv.weight.numel()
    assert counted.total("hetconv_scaled_bias") == 5 * 7 * conv.weight.numel() + 6 * 11 * 15


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda self, x: torch.einsum("bchw,kc->bkhw", x, torch.ones(77, 13)), 13 * 17 * 19 * 77),
        (lambda self, x: torch.einsum("bchw->bhwc", x), 0),
        (lambda self, x: torch.ones(23, 17) @ x, 13 * 23 * 17 * 19),  # fvcore's own handle: a 13th of it
        (lambda self, x: torch.bmm(x[0], x[0].transpose(1, 2)), 13 * 17 * 17 * 19),
        (lambda self, x: torch.mm(x[0, 0], x[0, 1].T), 17 * 17 * 19),
        (lambda self, x: F.linear(x, torch.ones(5, 19)), 13 * 17 * 19 * 5),
        (lambda self, x: F.scaled_dot_product_attention(x, x[:, :, :7], x[:, :, :7, :3]), 13 * 17 * 7 * (19 + 3)),
        (lambda self, x: (F.gelu(x.square_() + x.floor_()) * x).softmax(1).amax(1).cumsum(1), 0),
        (lambda self, x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.interpolate(x, (8, 9), mode="bicubic"), 0),
        (lambda self, x: F.unfold(x, 3).roll(1).repeat(1, 2, 1).pow(2).mean().log(), 0),
    ],
)
def test_a_function_without_a_layer_of_its_own_counts_for_the_module_that_calls_it(function, macs):
    model = Function(lambda self, x: self.inner(x), inner=Function(function))
    counted = cross_check(model, (13, 17, 19))
    assert sum(layer.macs for layer in counted.layers if layer.name == "inner") == macs
    assert counted.total("fvcore") == counted.total("macs") == counted.total("multiplications") == macs


def test_a_module_with_operations_of_several_kinds_has_a_layer_for_each():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Function(lambda self, x: self.attention(*[x.flatten(2).transpose(1, 2)] * 3), attention=attention)
    found = layers(model, (8, 3, 5))
    assert found["attention", "linear"].macs == 15 * 8 * 8 * 4
    assert found["attention", "matmul"].macs == 15 * 15 * 8 * 2
    assert sum(layer.params for layer in found.values()) == sum(p.numel() for p in model.parameters())
    assert count(model, (8, 3, 5)).total("conv_fc") == 15 * 8 * 8 * 4
    cross_check(model, (8, 3, 5))


@pytest.mark.parametrize(
    ("p", "arrangement"), [(1, "contiguous"), (4, "contiguous"), (4, "shifted"), ("out", "shifted")]
)
def test_hetconv_has_the_macs_of_its_definition(p, arrangement):
    operator = HetConv2d(8, 16, 3, stride=2, padding=1, p=p, arrangement=arrangement)
    parts = 16 if p == "out" else p
    kernels = sum(9 if c % parts == i % parts else 1 for i in range(16) for c in range(8))
    counted = cross_check(nn.Sequential(operator, nn.ReLU()), (8, 10, 6))
    layer = counted.layers[1]
    assert (layer.name, layer.kind, layer.operator, layer.bias) == ("0", "conv", "HetConv2d", True)
    assert (layer.macs, layer.multiplications) == (5 * 3 * kernels, 5 * 3 * kernels)
    assert layer.dense_macs == 5 * 3 * 16 * 8 * 9
    assert (layer.params, layer.weight_bits) == (kernels + 16, 32 * kernels)
    assert len(counted.layers) == 3


def test_a_convolution_without_a_layer_of_its_own_has_its_bias_additions_too():
    def both(self, x):
        return F.linear(F.conv2d(x, torch.ones(2, 3, 1, 1)), torch.ones(50, 4))

    found = layers(Function(both), (3, 4, 4))
    assert (found["", "linear"].macs, found["", "linear"].scaled_bias) == (2 * 4 * 4 * 50, 0)
    assert (found["", "conv"].macs, found["", "conv"].scaled_bias) == (16 * 2 * 3, 16 * 2)


def test_a_convolution_that_normalises_its_weights_has_a_layer_for_that():
    conv = timm.layers.ScaledStdConv2d(4, 6, 3, padding=0)
    found = layers(conv, (4, 5, 5))
    assert found["", "conv"].macs == 9 * 6 * 36
    assert found["", "norm"].macs > 0
    assert found["", "norm"].multiplications == found["", "norm"].params == 0
    assert count(conv, (4, 5, 5)).total("params") == sum(p.numel() for p in conv.parameters())
    cross_check(conv, (4, 5, 5))


def test_two_convolutions_in_one_operator_are_one_layer():
    model = nn.Sequential(GroupPointwise(8, 12, 3, padding=1, num_groups=2), DepthwisePointwise(12, 4, 3, bias=False))
    counted = cross_check(model, (8, 6, 6))
    grouped, depthwise = counted.layers[1:]
    assert (grouped.macs, grouped.dense_macs) == (36 * (8 * 4 * 9 + 8 * 12), 36 * 12 * 8 * 9)
    assert (depthwise.macs, depthwise.dense_macs) == (16 * (12 * 9 + 12 * 4), 16 * 4 * 12 * 9)
    assert (grouped.scaled_bias, depthwise.scaled_bias) == (36 * 8, 16 * 12)


def test_the_modules_inside_an_operator_are_no_layers():
    class Modular(GroupPointwise):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            del self.weight_kxk, self.weight_1x1, self.bias
            self.a = nn.Conv2d(self.in_channels, self.in_channels, 3, groups=4, bias=False)
            self.b = nn.Conv2d(self.in_channels, self.out_channels, 1)

        def forward(self, x):
            return self.b(self.a(x))

        def reset_parameters(self, init="torch"):
            pass

    layer, *others = cross_check(Modular(8, 6, 3), (8, 5, 5)).layers
    assert not others
    assert (layer.macs, layer.params, layer.weight_bits) == (9 * (144 + 48), 198, 32 * 192)


def test_squeeze_and_excitation_and_the_convolution_inside_are_layers():
    model = SqueezeExciteConv(HetConv2d(8, 16, 3, p=2), reduction=4)
    counted = cross_check(model, (8, 5, 5))
    assert {layer.name: layer.macs for layer in counted.layers if layer.kind in MULTIPLYING} == {
        "conv": 9 * 16 * (4 * 9 + 4),
        "se.squeeze": 64,
        "se.excite": 64,
    }
    assert counted.sum("macs", "pool") == 16 * 9


@pytest.mark.parametrize("knobs", [{"variant": "q", "bits": 4}, {"variant": "ps", "bits": 4}, {"variant": "v1"}])
def test_shift_operators_have_shifts_in_the_place_of_multiplications(knobs):
    model = nn.Sequential(
        ShiftConv2d(4, 6, 3, groups=2, **knobs),
        nn.Flatten(2),
        ShiftLinear(9, 5, **knobs),
        nn.Flatten(),
        nn.Linear(30, 2),
    )
    counted = cross_check(model, (4, 5, 5))
    conv, linear, last = (layer for layer in counted.layers if layer.kind in MULTIPLYING)
    assert (conv.macs, conv.dense_macs, conv.shifts, conv.multiplications) == (972, 972, 972, 0)
    assert (linear.macs, linear.dense_macs, linear.shifts, linear.multiplications) == (270, 270, 270, 0)
    assert (linear.out_h, linear.out_w) == (1, 6)
    assert (last.shifts, last.multiplications) == (0, 60)
    assert (counted.total("shifts"), counted.total("multiplications")) == (1242, 60)
    if "bits" in knobs:
        assert (conv.weight_bits, linear.weight_bits, last.weight_bits) == (4 * 108, 4 * 45, 32 * 60)


def test_weights_that_v1_froze_still_take_bits():
    bits = [
        count(ShiftConv2d(4, 6, 3, variant="v1", bias=False, frozen=f), (4, 5, 5)).total("weight_bits") for f in (0, 1)
    ]
    assert all(216 <= b <= 6 * 216 for b in bits)


def test_calls_of_a_shared_module_add_up_and_its_parameters_count_once():
    conv = HetConv2d(4, 4, 3, padding=1, p=2)
    model = Function(lambda self, x: self.a(F.max_pool2d(self.b(self.a(x)), 2)), a=conv, b=nn.ReLU(), c=conv)
    counted = cross_check(model, (4, 8, 6))
    (layer,) = (layer for layer in counted.layers if layer.kind == "conv")
    assert (layer.name, layer.calls, layer.out_h, layer.out_w) == ("a", 2, 4, 3)
    assert layer.macs == (48 + 12) * 4 * (2 * 9 + 2)
    assert (layer.dense_macs, layer.multiplications) == (60 * 4 * 4 * 9, layer.macs)
    assert layer.params == counted.total("params") == conv.macs(1, 1) + 4


def test_a_parameter_of_two_modules_counts_in_the_first():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    counted = count(nn.Sequential(first, second), (1, 6, 6))
    assert [layer.params for layer in counted.layers] == [0, 42, 6]
    assert (counted.total("params"), counted.total("macs")) == (48, 2 * 6 * 36)


def test_a_view_of_a_parameter_may_be_the_input_of_a_module():
    def scale(self, x):
        return x @ self.norm(self.weight.expand(2, -1, -1))

    model = Function(scale, norm=nn.LayerNorm(5), weight=nn.Parameter(torch.ones(1, 4, 5)))
    assert cross_check(model, (2, 3, 4)).total("macs") == 2 * 3 * 4 * 5


def test_a_module_that_never_runs_costs_parameters_only():
    model = Function(lambda self, x: self.used(x), used=nn.Conv2d(2, 3, 1), unused=nn.Conv2d(2, 5, 3))
    unused = layers(model, (2, 4, 4))["unused", "conv"]
    assert (unused.calls, unused.macs, unused.scaled_bias, unused.out_h, unused.params) == (0, 0, 0, 0, 5 * 18 + 5)


def test_the_batch_that_a_module_makes_is_counted():
    conv = HetConv2d(1, 4, 3, p=4)
    model = Function(lambda self, x: self.conv(x.transpose(0, 1)), conv=conv)
    layer = layers(model, (7, 5, 5))["conv", "conv"]
    assert (layer.macs, layer.dense_macs, layer.scaled_bias) == (
        7 * conv.macs(3, 3),
        7 * 9 * 36,
        7 * conv.scaled_bias(3, 3),
    )
    cross_check(model, (7, 5, 5))


def dropped(self, x):
    return {"logits": self.head(F.dropout(self.norm(self.conv(x)), 0.5, self.training).mean((2, 3))), "x": (x, None)}


def tiny():
    return Function(
        dropped,
        conv=HetConv2d(4, 8, 3, p=4, arrangement="shifted"),
        norm=nn.BatchNorm2d(8),
        head=ShiftLinear(8, 3, rounding="stochastic"),
    )


def test_a_model_in_training_counts_the_same_and_stays_as_it_was():
    model = tiny()
    expected = count(model.eval(), (4, 6, 6))
    model.train()
    model.norm.eval()
    seen = []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(module.training))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grad, random = torch.is_grad_enabled(), torch.get_rng_state()
    assert count(model, (4, 6, 6)) == expected == cross_check(model, (4, 6, 6))
    assert [m.training for m in (model, model.conv, model.norm, model.head)] == [True, True, False, True]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled() == grad
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.grad is not None for p in model.parameters())
    assert len(seen) == 3
    assert not any(seen)


@pytest.mark.parametrize("counter", [count, cross_check])
def test_a_model_that_raises_is_put_back(counter):
    def fails(self, x):
        self.conv(x)
        raise RuntimeError("no")

    model = Function(fails, conv=HetConv2d(4, 8, 3, p=4, arrangement="shifted")).train()
    model.conv.register_forward_hook(lambda *_: None)
    hooks = [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ConvReproError, match="does not take an image of 4x6x6: no"):
        counter(model, (4, 6, 6))
    assert [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert not any("forward" in vars(m) for m in model.modules())
    assert all(m.training for m in model.modules())


def test_a_forward_that_was_put_on_an_instance_is_still_there():
    conv = HetConv2d(4, 8, 3, p=4)
    usual = conv.forward
    conv.forward = mine = lambda x: usual(x) * 2
    count(conv, (4, 6, 6))
    assert conv.forward is mine


def test_the_weights_do_not_matter():
    expected = count(tiny(), (4, 6, 6))
    model = tiny()
    for p in model.parameters():
        nn.init.constant_(p, torch.nan)
    assert count(model, (4, 6, 6)) == expected
    assert count(tiny().double(), (4, 6, 6)) == expected
    assert count(tiny().bfloat16(), (4, 6, 6)) == expected


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda self, x: torch.fft.rfft2(x).real, "aten::fft_rfft2"),
        (lambda self, x: Rounded.apply(x), "prim::PythonOp.Rounded"),
        (lambda self, x: torch.baddbmm(x[0], x[0], x[0]), "aten::baddbmm"),
        (lambda self, x: torch.cdist(x, x), "aten::cdist"),
    ],
)
def test_what_cannot_be_counted_is_named_with_its_place(function, operation):
    model = Function(lambda self, x: self.outer(x), outer=nn.Sequential(nn.ReLU(), Function(function)))
    with pytest.raises(ConvReproError, match=rf"{operation} in outer\.1 \(Function\)"):
        count(model, (2, 4, 4))


def test_an_uncountable_einsum_or_layer_is_named():
    chain = Function(lambda self, x: torch.einsum("bchw,ci,ij->bjhw", x, torch.ones(2, 3), torch.ones(3, 4)))
    with pytest.raises(ConvReproError, match="bchw,ci,ij->bjhw"):
        count(chain, (2, 4, 4))
    with pytest.raises(ConvReproError, match=r"aten::lstm in rnn \(LSTM\)"):
        count(Function(lambda self, x: self.rnn(x[0]), rnn=nn.LSTM(4, 3)), (2, 4, 4))


@pytest.mark.parametrize("size", [(3, 8), (3, 8, 0), (3, 8, 8.0), (1, 3, 8, 8)])
def test_a_bad_input_size_is_refused(size):
    with pytest.raises(ConvReproError, match="three positive integers"):
        count(nn.Conv2d(3, 4, 3), size)


def test_the_meta_device_is_refused_with_the_way_out():
    with torch.device("meta"):
        conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(ConvReproError, match="to_empty"):
        count(conv, (3, 8, 8))
    assert count(conv.to_empty(device="cpu"), (3, 8, 8)).total("macs") == 36 * 108


def test_counting_is_silent(monkeypatch, capfd):
    records = []
    monkeypatch.setattr(logging.Logger, "handle", lambda self, record: records.append(record))
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    model = Function(lambda self, x: self.used(x).relu() + x.shape[0], used=nn.Conv2d(2, 3, 1), unused=nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_check(model, (2, 4, 4))
    assert not records
    assert capfd.readouterr() == ("", "")
