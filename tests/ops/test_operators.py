"""What every operator promises, on every case of `operator_cases.py`."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convrepro.ops import OPERATORS, ConvOperator, knobs
from support.operator_cases import CASES, OperatorCase

pytestmark = pytest.mark.unit

CONF = Path(__file__).parents[2] / "conf" / "conv"

GRID = [
    {},
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2, "bias": False},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "valid", "stride": (2, 1), "bias": False},
    {"kernel_size": 5, "padding": 2, "stride": 3},
    {"kernel_size": (3, 5), "padding": (3, 0), "dilation": (2, 1), "stride": (1, 2)},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "padding": 1},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (0, 2), "stride": 2, "padding_mode": "replicate"},
    {"padding": (2, 1), "dilation": 2, "padding_mode": "circular"},
    {"padding": "same", "kernel_size": 5, "padding_mode": "circular"},
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(case: OperatorCase, batch: int = 2, height: int = 9, width: int = 12, **words: object) -> Tensor:
    return torch.randn(batch, case.in_channels, height, width, **words)


class Exact(nn.Module):
    """Runs an operator by its counting form."""

    def __init__(self, operator: ConvOperator) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.forward_exact(x)


@every_case
@pytest.mark.parametrize("words", GRID, ids=str)
def test_output_is_that_of_the_convolution_it_stands_for(case: OperatorCase, words: dict) -> None:
    operator = case.build(dtype=torch.float64, **words)
    conv = nn.Conv2d(case.in_channels, case.out_channels, **{"kernel_size": 3, **words}, dtype=torch.float64)
    x = images(case, dtype=torch.float64)
    y = operator(x)
    assert y.shape == conv(x).shape
    assert y.dtype == torch.float64
    if hasattr(operator, "dense_weight"):
        conv.load_state_dict({"weight": operator.dense_weight()}, strict=False)
        if conv.bias is not None:
            conv.load_state_dict({"bias": operator.bias}, strict=False)
        torch.testing.assert_close(y, conv(x))


@pytest.mark.parametrize("case", [case for case in CASES if case.degenerate is not None], ids=lambda case: case.name)
@pytest.mark.parametrize("words", GRID, ids=str)
def test_equals_the_convolution_at_the_degenerate_knob(case: OperatorCase, words: dict) -> None:
    own = knobs(case.operator)
    words = {"kernel_size": 3, **words, **{k: v for k, v in case.degenerate.items() if k not in own}}
    conv = nn.Conv2d(case.in_channels, case.out_channels, **words)
    operator = case.operator.from_conv(conv, **{k: v for k, v in case.degenerate.items() if k in own})
    x = images(case)
    torch.testing.assert_close(operator(x), conv(x), rtol=0, atol=case.tolerance)


@every_case
def test_exact_form_gives_the_same(case: OperatorCase) -> None:
    for words in GRID:
        operator = case.build(**words)
        x = images(case)
        torch.testing.assert_close(operator.forward_exact(x), operator(x), rtol=0, atol=case.tolerance)


@every_case
@pytest.mark.parametrize("words", [{"padding": 1}, {"stride": 2, "bias": False}, {"kernel_size": (5, 3)}], ids=str)
def test_macs_are_what_two_counters_see(case: OperatorCase, words: dict) -> None:
    operator = case.build(**words).eval()
    x = images(case, batch=1)
    with torch.no_grad():
        out_h, out_w = operator(x).shape[2:]
        analysis = FlopCountAnalysis(Exact(operator), x).unsupported_ops_warnings(False)
        with FlopCounterMode(display=False) as counter:
            operator.forward_exact(x)
    macs = operator.macs(out_h, out_w)
    assert isinstance(macs, int)
    products = case.products or (lambda module, h, w: case.weights(module) * h * w)
    assert macs == products(operator, out_h, out_w)
    assert macs == analysis.total()
    assert 2 * macs == counter.get_total_flops()
    left = operator.multiplications(out_h, out_w) + operator.shifts(out_h, out_w)
    assert left == macs if case.multiplies else 0 < left < macs


@pytest.mark.parametrize(
    ("case", "words", "pieces"),
    [pytest.param(case, *bad, id=f"{case.name}-{bad[0]}") for case in CASES for bad in case.bad],
)
def test_bad_words_are_refused_with_value_rule_and_choices(case: OperatorCase, words: dict, pieces: tuple) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the pieces are the match
        case.build(**words)
    assert [piece for piece in pieces if piece not in str(error.value)] == [], str(error.value)


@every_case
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
        ({"kernel_size": 0}, r"kernel_size=\(0, 0\) must be at least 1"),
        ({"stride": (1, 0)}, r"stride=\(1, 0\) must be at least 1"),
        ({"kernel_size": 3.0}, r"kernel_size=3.0 must be an integer or a pair of integers; valid: 1, \(1, 2\)"),
        ({"dilation": None}, r"dilation=None must be an integer or a pair of integers; valid: 1, \(1, 2\)"),
        ({"padding": "full"}, "padding='full'"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror' is unknown; valid: zeros, reflect, replicate, circular"),
    ],
    ids=str,
)
def test_bad_common_words_are_refused(case: OperatorCase, words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case.build(**words)


@every_case
def test_unknown_initialisation_is_refused(case: OperatorCase) -> None:
    with pytest.raises(ValueError, match="init='xavier' is not a scheme; valid: torch, fan_in, fan_out"):
        case.build().reset_parameters("xavier")


@every_case
def test_same_seed_same_weights_and_reset_draws_anew(case: OperatorCase) -> None:
    torch.manual_seed(1)
    first = case.build()
    torch.manual_seed(1)
    second = case.build()
    x = images(case)
    assert torch.equal(first(x), second(x))
    second.reset_parameters("fan_out")
    assert not torch.equal(first(x), second(x))


@every_case
def test_gradients_reach_every_parameter_and_the_input(case: OperatorCase) -> None:
    operator = case.build(padding=1)
    x = images(case).requires_grad_()
    y = operator(x)
    (y * torch.randn_like(y)).sum().backward()
    tensors = {name: p for name, p in operator.named_parameters() if p.requires_grad} | {"input": x}
    assert [name for name, t in tensors.items() if t.grad is None or not t.grad.isfinite().all()] == []
    assert [name for name, t in tensors.items() if not t.grad.any()] == []


@every_case
def test_forward_changes_no_state(case: OperatorCase) -> None:
    operator = case.build(padding=1)
    before = copy.deepcopy(operator.state_dict())
    for mode in (True, False):
        y = operator.train(mode)(images(case))
        if mode:
            y.sum().backward()
    torch.testing.assert_close(operator.state_dict(), before, rtol=0, atol=0)


@every_case
def test_runs_under_autocast(case: OperatorCase) -> None:
    operator = case.build(padding=1)
    x = images(case)
    with torch.autocast("cpu", torch.bfloat16):
        y = operator(x)
        exact = operator.forward_exact(x)
    assert y.dtype == exact.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), operator(x), rtol=0, atol=case.autocast_tolerance)
    torch.testing.assert_close(exact.float(), operator(x), rtol=0, atol=case.autocast_tolerance)
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in operator.parameters() if p.requires_grad)


@every_case
def test_keeps_the_memory_format(case: OperatorCase) -> None:
    operator = case.build(padding=1)
    x = images(case)
    y = operator(x)
    assert y.is_contiguous()
    last = operator.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y, rtol=0, atol=case.tolerance)


@every_case
def test_takes_any_batch(case: OperatorCase) -> None:
    operator = case.build(padding=1, stride=2)
    x = images(case, batch=3)
    y = operator(x)
    torch.testing.assert_close(operator(x[:1]), y[:1], rtol=0, atol=case.tolerance)
    for form in (operator, operator.forward_exact):
        assert form(x[:0]).shape == (0, *y.shape[1:])


@every_case
def test_traces(case: OperatorCase) -> None:
    operator = case.build(padding=1).eval()
    with torch.no_grad():
        traced = torch.jit.trace(operator, images(case))
        x = images(case, batch=3, height=7, width=5)
        torch.testing.assert_close(traced(x), operator(x), rtol=0, atol=case.tolerance)


@every_case
def test_compiles_without_graph_breaks(case: OperatorCase) -> None:
    torch._dynamo.reset()
    operator = case.build(padding=1)
    x = images(case)
    compiled = torch.compile(operator, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), operator(x), rtol=0, atol=case.tolerance)


@every_case
def test_deepcopy_is_equal_and_independent(case: OperatorCase) -> None:
    operator = case.build(padding=1)
    x = images(case)
    before = operator(x)
    twin = copy.deepcopy(operator)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(operator(x), before)


@every_case
def test_state_dict_carries_the_function(case: OperatorCase, tmp_path: Path) -> None:
    operator, fresh = case.build(padding=1), case.build(padding=1)
    x = images(case)
    assert not torch.equal(fresh(x), operator(x))
    torch.save(operator.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(x), operator(x))


@every_case
def test_runs_on_the_meta_device(case: OperatorCase) -> None:
    operator = case.build(padding=1, device="meta")
    assert operator(images(case, device="meta")).shape == (2, case.out_channels, 9, 12)


@every_case
def test_weight_decay_reaches_weights_but_not_biases(case: OperatorCase) -> None:
    """timm leaves parameters with fewer than two dimensions out of weight decay."""
    operator = case.build()
    assert {name for name, p in operator.named_parameters() if p.ndim < 2} == {"bias"}


@pytest.mark.parametrize(
    "case", [case for case in CASES if hasattr(case.operator, "from_conv")], ids=lambda case: case.name
)
def test_from_conv_keeps_shape_words_bias_dtype_and_mode(case: OperatorCase) -> None:
    conv = nn.Conv2d(
        case.in_channels, case.out_channels, 3, (2, 1), 1, 2, padding_mode="circular", dtype=torch.float64
    ).eval()
    operator = case.operator.from_conv(conv, **case.knobs)
    words = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert {word: getattr(operator, word) for word in words} == {word: getattr(conv, word) for word in words}
    assert torch.equal(operator.bias, conv.bias)
    assert operator.bias.requires_grad
    assert not operator.training
    assert {p.dtype for p in operator.parameters()} == {torch.float64}
    assert {knob: getattr(operator, knob) for knob in case.knobs} == case.knobs


@pytest.mark.parametrize(
    "case", [case for case in CASES if hasattr(case.operator, "from_conv")], ids=lambda case: case.name
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_from_conv_of_a_half_is_that_of_the_same_floats(case: OperatorCase, dtype: torch.dtype) -> None:
    conv = nn.Conv2d(case.in_channels, case.out_channels, 3, dtype=dtype)
    half = case.operator.from_conv(conv, **case.knobs)
    full = case.operator.from_conv(conv.float(), **case.knobs)
    assert {p.dtype for p in half.parameters()} == {dtype}
    torch.testing.assert_close(half.state_dict(), full.to(dtype).state_dict())


@every_case
def test_repr_tells_shape_and_knobs(case: OperatorCase) -> None:
    operator = case.build(padding=1)
    text = repr(operator)
    assert f"{case.in_channels}, {case.out_channels}, kernel_size=(3, 3)" in text
    assert "padding=(1, 1)" in text
    assert [knob for knob in knobs(case.operator) if f"{knob}={getattr(operator, knob)!r}" not in text] == []


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in CASES} == set(OPERATORS.values()) - {nn.Conv2d}


def test_every_operator_takes_the_words_of_conv2d_in_their_order() -> None:
    def words(operator: type[nn.Module]) -> dict[str, object]:
        parameters = inspect.signature(operator.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}

    assert {name for name, operator in OPERATORS.items() if words(operator) != words(nn.Conv2d)} == set()
    assert {name for name, o in OPERATORS.items() if list(words(o)) != list(words(nn.Conv2d))} == set()


@pytest.mark.parametrize("path", sorted(set(CONF.glob("*.yaml")) - {CONF / "plan.yaml"}), ids=lambda path: path.stem)
def test_yaml_lists_every_knob_with_its_default(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    operator = OPERATORS[config["name"]]
    assert set(config) == {"name", "where", *knobs(operator)}
    if path.stem == config["name"]:
        assert {knob: config[knob] for knob in knobs(operator)} == knobs(operator)


def test_every_operator_has_a_yaml() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} >= set(OPERATORS)
