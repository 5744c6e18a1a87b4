"""An outside package tests its operators with `convrepro.testing`: GhostNet's module and FasterNet's convolution."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convrepro.ops import conv_arguments, scaled
from convrepro.testing import OperatorCase, operator_tests
from support.outside import own_registry

with own_registry():
    from outside_ops.operators import GhostConv2d, PartialConv2d

pytestmark = pytest.mark.unit

TestGhost = operator_tests(
    OperatorCase(GhostConv2d, 8, 12, {"ratio": 2}, bad=(({"ratio": 5}, ("ratio=5", "divide", "valid: 1, 2, 3")),)),
    OperatorCase(GhostConv2d, 8, 12, {"ratio": 3, "cheap_kernel": 5, "norm": False}),
)
TestPartial = operator_tests(OperatorCase(PartialConv2d, 8, 12, {"parts": 4}, undecayed=frozenset({"bias", "gain"})))
CONTRIBUTING = Path(__file__).parents[2] / ".github" / "CONTRIBUTING.md"
with own_registry():
    example: dict = {"__name__": "contributing"}
    exec(next(block for block in re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(), re.S)), example)
TestFirstChannels = operator_tests(
    OperatorCase(
        example["FirstChannels"],
        knobs={"parts": 2},
        degenerate={"parts": 1},
        bad=(({"parts": 3}, ("parts=3 must divide in_channels=8", "valid: 1, 2, 4, 8")),),
    )
)


def test_a_ghost_module_is_the_papers_formula_in_loops():
    """Each intrinsic map, then the cheap operations of each: y_ij = phi_ij(y_i), by hand in float64."""
    torch.manual_seed(0)
    ghost = GhostConv2d(3, 6, 3, padding=1, bias=False, dtype=torch.float64, ratio=3, norm=False)
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    y = nn.functional.conv2d(x, ghost.weight, padding=1)
    padded = nn.functional.pad(y, (1, 1, 1, 1))
    expected = [y[0, i] for i in range(2)]
    for j in range(4):
        kernel, source = ghost.weight_cheap[j, 0], padded[0, j // 2]
        expected.append(
            torch.stack([(source[r : r + 3, c : c + 3] * kernel).sum() for r in range(5) for c in range(5)])
        )
    torch.testing.assert_close(ghost(x)[0], torch.stack([m.reshape(5, 5) for m in expected]))


@pytest.mark.parametrize("words", [{"padding": 1}, {"padding": 2, "dilation": 2, "stride": 2}, {"kernel_size": (1, 5)}])
def test_a_partial_convolution_is_a_convolution_with_kernels_that_pass_channels_on(words):
    torch.manual_seed(0)
    words = {"kernel_size": 3, **words}
    partial = PartialConv2d(8, 5, **words, dtype=torch.float64, parts=4)
    dense = nn.Conv2d(8, 8, **words, bias=False, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.zero_()
        dense.weight[:2, :2] = partial.weight_part
        height, width = partial.kernel_size
        dense.weight[range(2, 8), range(2, 8), height // 2, width // 2] = 1
    x = torch.randn(2, 8, 11, 12, dtype=torch.float64)
    mixed = nn.functional.conv2d(dense(x), partial.weight_pointwise, partial.bias)
    torch.testing.assert_close(partial(x), mixed)


def test_tests_of_what_no_case_has_are_left_out():
    assert TestPartial.test_from_conv_of_a_half_is_that_of_the_same_floats is None
    assert TestGhost.test_bad_words_are_refused_with_value_rule_and_choices is not None


def test_the_generated_tests_fail_for_an_operator_that_breaks_a_promise():
    class Liar(PartialConv2d):
        def macs(self, out_h: int, out_w: int) -> int:
            return 1

    class Scales(GhostConv2d):
        def _scale_(self, scale: Tensor) -> bool:
            self.weight = scaled(self.weight, scale[: self.weight.shape[0]])
            return True

    class Forgets(example["FirstChannels"]):
        @classmethod
        def from_conv(cls, conv: nn.Conv2d, *, parts: int = 2) -> "Forgets":
            return cls(**conv_arguments(conv), parts=parts)

    class Blunt(example["FirstChannels"]):
        def deployed(self) -> nn.Module:
            return nn.Conv2d(8, 12, 3)

    def fails(operator: type, test: str, *words: object) -> None:
        case = OperatorCase(operator)
        with pytest.raises(AssertionError):
            getattr(operator_tests(case)(), test)(case, *words)

    fails(Liar, "test_macs_are_what_two_counters_see", {"padding": 1})
    fails(Scales, "test_fold_scales_and_shifts_the_output_or_changes_nothing")
    fails(Forgets, "test_from_conv_takes_what_the_convolution_has_learnt")
    fails(Blunt, "test_deployed_form_gives_the_same")
