"""What every operator promises, as tests that are generated for the cases of an operator."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convrepro.models.registry import check_contract
from convrepro.ops import ConvOperator, knobs
from convrepro.testing.case import OperatorCase, images, is_of_a_norm, modes

GRID: list[dict[str, Any]] = [
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
"""Constructor words of `nn.Conv2d` on which the shapes are compared with it."""

PRODUCTS = {"conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum"}
"""fvcore's names of the operations that multiply and accumulate; it estimates a cost for norms and pooling, too."""

OPTIONAL: dict[str, Callable[[OperatorCase], object]] = {
    "test_bad_words_are_refused_with_value_rule_and_choices": lambda case: case.bad,
    "test_equals_the_convolution_at_the_degenerate_knob": lambda case: case.degenerate is not None,
    "test_from_conv_keeps_shape_words_bias_dtype_and_mode": lambda case: hasattr(case.operator, "from_conv"),
    "test_from_conv_of_a_half_is_that_of_the_same_floats": lambda case: hasattr(case.operator, "from_conv"),
    "test_from_conv_takes_what_the_convolution_has_learnt": lambda case: hasattr(case.operator, "from_conv"),
}
"""Tests of what an operator need not have, and which cases have it."""


def operator_tests(*cases: OperatorCase) -> type["OperatorTests"]:
    """Returns a class of tests for pytest, to be bound to a name that begins with `Test` in a test module.

    Each test runs on each case. The tests compare shapes with `nn.Conv2d`, and the cost with two counters; they check
    gradients, precision, memory format, tracing, compilation, state, copies, deployment and messages, and what the
    contract in `convrepro.ops.base` asks for. They start no process and train nothing.

    They do not know the definition of an operator: that it computes what its paper says is for a test of yours, for
    example a comparison with loops in float64. With `degenerate` they compare one setting with `nn.Conv2d`, and an
    operator with a method `dense_weight()`, the kernel (N, C / groups, K, K) that it amounts to, in all settings.

    Example:
        TestMine = operator_tests(OperatorCase(MyOperator, 8, 16, {"ratio": 2}))
    """
    absent = {name: None for name, has in OPTIONAL.items() if not any(map(has, cases))}
    return type("OperatorTests", (OperatorTests,), {"cases": cases, **absent})


class Exact(nn.Module):
    """Runs an operator by its counting form."""

    def __init__(self, operator: ConvOperator) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.forward_exact(x)


class OperatorTests:
    """The tests of `operator_tests`."""

    cases: ClassVar[tuple[OperatorCase, ...]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Gives each test its cases, and the test of bad words each pair of words and pieces of the message."""
        name = metafunc.function.__name__
        if "pieces" in metafunc.fixturenames:
            bad = [pytest.param(case, *pair, id=f"{case.name}-{pair[0]}") for case in self.cases for pair in case.bad]
            metafunc.parametrize(("case", "words", "pieces"), bad)
        elif "case" in metafunc.fixturenames:
            cases = [case for case in self.cases if name not in OPTIONAL or OPTIONAL[name](case)]
            metafunc.parametrize("case", cases, ids=[case.name for case in cases])

    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        torch.default_generator.manual_seed(0)

    def test_meets_the_contract(self, case: OperatorCase) -> None:
        check_contract(case.operator)

    @pytest.mark.parametrize("words", GRID, ids=str)
    def test_output_is_that_of_the_convolution_it_stands_for(self, case: OperatorCase, words: dict) -> None:
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

    @pytest.mark.parametrize("words", GRID, ids=str)
    def test_equals_the_convolution_at_the_degenerate_knob(self, case: OperatorCase, words: dict) -> None:
        own, degenerate = knobs(case.operator), case.degenerate or {}
        words = {"kernel_size": 3, **words, **{k: v for k, v in degenerate.items() if k not in own}}
        conv = nn.Conv2d(case.in_channels, case.out_channels, **words)
        operator = case.operator.from_conv(conv, **{k: v for k, v in degenerate.items() if k in own})
        x = images(case)
        torch.testing.assert_close(operator(x), conv(x), rtol=0, atol=case.tolerance)

    def test_exact_form_gives_the_same(self, case: OperatorCase) -> None:
        for words in GRID:
            operator = case.build(**words)
            x = images(case)
            torch.testing.assert_close(operator.forward_exact(x), operator(x), rtol=0, atol=case.tolerance)

    @pytest.mark.parametrize("words", [{"padding": 1}, {"stride": 2, "bias": False}, {"kernel_size": (5, 3)}], ids=str)
    def test_macs_are_what_two_counters_see(self, case: OperatorCase, words: dict) -> None:
        operator = case.build(**words).eval()
        x = images(case, batch=1)
        with torch.no_grad():
            out_h, out_w = operator(x).shape[2:]
            analysis = FlopCountAnalysis(Exact(operator), x).unsupported_ops_warnings(False)
            with FlopCounterMode(display=False) as counter:
                operator.forward_exact(x)
        macs = operator.macs(out_h, out_w)
        assert isinstance(macs, int), f"macs() returns a {type(macs).__name__}, not an int"
        products = case.products or (lambda module, h, w: case.weights(module) * h * w)
        sources = {
            "fvcore": sum(number for name, number in analysis.by_operator().items() if name in PRODUCTS),
            "torch's FlopCounterMode": counter.get_total_flops() // 2,
            "the case (products, or weights x positions)": products(operator, out_h, out_w),
        }
        for source, number in sources.items():
            told = f"macs({out_h}, {out_w}) returns {macs:,}, {source} has {number:,} for forward_exact"
            assert macs == number, told
        left = operator.multiplications(out_h, out_w) + operator.shifts(out_h, out_w)
        assert left == macs if case.multiplies else 0 < left < macs

    def test_bad_words_are_refused_with_value_rule_and_choices(
        self, case: OperatorCase, words: dict, pieces: tuple
    ) -> None:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the pieces are the match
            case.build(**words)
        assert [piece for piece in pieces if piece not in str(error.value)] == [], str(error.value)

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
            (
                {"padding_mode": "mirror"},
                "padding_mode='mirror' is unknown; valid: zeros, reflect, replicate, circular",
            ),
        ],
        ids=str,
    )
    def test_bad_common_words_are_refused(self, case: OperatorCase, words: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            case.build(**words)

    def test_unknown_initialisation_is_refused(self, case: OperatorCase) -> None:
        with pytest.raises(ValueError, match="init='xavier' is not a scheme; valid: torch, fan_in, fan_out"):
            case.build().reset_parameters("xavier")

    def test_same_seed_same_weights_and_reset_draws_anew(self, case: OperatorCase) -> None:
        torch.manual_seed(1)
        first = case.build()
        torch.manual_seed(1)
        second = case.build()
        x = images(case)
        assert torch.equal(first(x), second(x))
        second.reset_parameters("fan_out")
        assert not torch.equal(first(x), second(x))

    def test_gradients_reach_every_parameter_and_the_input(self, case: OperatorCase) -> None:
        operator = case.build(padding=1)
        x = images(case).requires_grad_()
        y = operator(x)
        (y * torch.randn_like(y)).sum().backward()
        tensors = {name: p for name, p in operator.named_parameters() if p.requires_grad} | {"input": x}
        assert [name for name, t in tensors.items() if t.grad is None or not t.grad.isfinite().all()] == []
        assert [name for name, t in tensors.items() if not t.grad.any()] == []

    def test_forward_changes_no_state(self, case: OperatorCase) -> None:
        """But for the statistics of norms in training mode."""
        operator = case.build(padding=1)
        parameters = {name for name, _ in operator.named_parameters()}
        for mode in (True, False):
            before = copy.deepcopy(operator.state_dict())
            y = operator.train(mode)(images(case))
            if mode:
                y.sum().backward()
            kept = {name for name in before if not mode or name in parameters or not is_of_a_norm(operator, name)}
            after = operator.state_dict()
            changed = [name for name in kept if not torch.equal(after[name], before[name])]
            assert changed == []

    def test_runs_under_autocast(self, case: OperatorCase) -> None:
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

    def test_keeps_the_memory_format(self, case: OperatorCase) -> None:
        operator = case.build(padding=1)
        x = images(case)
        y = operator(x)
        assert y.is_contiguous(), f"the output of a contiguous input has strides {y.stride()}"
        last = operator.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        strides = f"the output (B, C, H, W) of an input in channels_last has strides {last.stride()}; C's must be 1"
        assert last.is_contiguous(memory_format=torch.channels_last), strides
        torch.testing.assert_close(last, y, rtol=0, atol=case.tolerance)

    def test_takes_any_batch(self, case: OperatorCase) -> None:
        x = images(case, batch=3)
        for operator in modes(case.build(padding=1, stride=2)):
            y = operator(x)
            torch.testing.assert_close(operator(x[:1]), y[:1], rtol=0, atol=case.tolerance)
            for form in (operator, operator.forward_exact):
                assert form(x[:0]).shape == (0, *y.shape[1:])

    def test_traces(self, case: OperatorCase) -> None:
        operator = case.build(padding=1).eval()
        with torch.no_grad():
            traced: Any = torch.jit.trace(operator, images(case))
            x = images(case, batch=3, height=7, width=5)
            torch.testing.assert_close(traced(x), operator(x), rtol=0, atol=case.tolerance)

    def test_compiles_without_graph_breaks(self, case: OperatorCase) -> None:
        torch._dynamo.reset()
        operator = case.build(padding=1)
        x = images(case)
        compiled = torch.compile(operator, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), operator(x), rtol=0, atol=case.tolerance)

    def test_deepcopy_is_equal_and_independent(self, case: OperatorCase) -> None:
        operator = case.build(padding=1)
        x = images(case)
        before = operator(x)
        twin = copy.deepcopy(operator)
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert torch.equal(operator(x), before)

    def test_state_dict_carries_the_function(self, case: OperatorCase, tmp_path: Path) -> None:
        operator, fresh = case.build(padding=1), case.build(padding=1)
        x = images(case)
        assert not torch.equal(fresh(x), operator(x))
        torch.save(operator.state_dict(), tmp_path / "state.pt")
        fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(fresh(x), operator(x))

    def test_runs_on_the_meta_device(self, case: OperatorCase) -> None:
        operator = case.build(padding=1, device="meta")
        assert operator(images(case, device="meta")).shape == (2, case.out_channels, 9, 12)

    def test_deployed_form_gives_the_same(self, case: OperatorCase) -> None:
        for words in GRID:
            operator = case.build(**words).eval()
            x = images(case)
            torch.testing.assert_close(operator.deployed()(x), operator(x), rtol=0, atol=case.tolerance)

    def test_fold_scales_and_shifts_the_output_or_changes_nothing(self, case: OperatorCase) -> None:
        for words in GRID:
            operator = case.build(dtype=torch.float64, **words).eval()
            x = images(case, dtype=torch.float64)
            scale, shift = torch.randn(2, case.out_channels, dtype=torch.float64)
            y = operator(x)
            if operator.fold_(scale, shift):
                y = scale[:, None, None] * y + shift[:, None, None]
            torch.testing.assert_close(operator(x), y)

    def test_weight_decay_reaches_weights_but_not_biases(self, case: OperatorCase) -> None:
        """timm leaves parameters with fewer than two dimensions out of weight decay."""
        operator = case.build()
        small = {name for name, p in operator.named_parameters() if p.ndim < 2}
        assert {name for name in small if not is_of_a_norm(operator, name)} == case.undecayed

    def test_from_conv_keeps_shape_words_bias_dtype_and_mode(self, case: OperatorCase) -> None:
        conv = nn.Conv2d(
            case.in_channels, case.out_channels, 3, (2, 1), 1, 2, padding_mode="circular", dtype=torch.float64
        ).eval()
        operator = case.operator.from_conv(conv, **case.knobs)
        words = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        assert {word: getattr(operator, word) for word in words} == {word: getattr(conv, word) for word in words}
        torch.testing.assert_close(operator.bias, conv.bias, rtol=0, atol=0)
        assert operator.bias.requires_grad
        assert not operator.training
        assert {p.dtype for p in operator.parameters()} == {torch.float64}
        assert {knob: getattr(operator, knob) for knob in case.knobs} == case.knobs

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_from_conv_of_a_half_is_that_of_the_same_floats(self, case: OperatorCase, dtype: torch.dtype) -> None:
        conv = nn.Conv2d(case.in_channels, case.out_channels, 3, dtype=dtype)
        half = case.operator.from_conv(conv, **case.knobs)
        full = case.operator.from_conv(conv.float(), **case.knobs)
        assert {p.dtype for p in half.parameters()} == {dtype}
        torch.testing.assert_close(half.state_dict(), full.to(dtype).state_dict())

    def test_from_conv_takes_what_the_convolution_has_learnt(self, case: OperatorCase) -> None:
        """The same convolution gives the same operator, another one another, and the convolution is left as it is."""
        convs = [nn.Conv2d(case.in_channels, case.out_channels, 3, padding=1).eval() for _ in range(2)]
        before = copy.deepcopy(convs[0].state_dict())
        x = images(case)
        first, again, other = (case.operator.from_conv(conv, **case.knobs)(x) for conv in (convs[0], *convs))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert all(torch.equal(value, before[key]) for key, value in convs[0].state_dict().items())

    def test_repr_tells_shape_and_knobs(self, case: OperatorCase) -> None:
        operator = case.build(padding=1)
        text = repr(operator)
        assert f"{case.in_channels}, {case.out_channels}, kernel_size=(3, 3)" in text
        assert "padding=(1, 1)" in text
        assert [knob for knob in knobs(case.operator) if f"{knob}={getattr(operator, knob)!r}" not in text] == []
