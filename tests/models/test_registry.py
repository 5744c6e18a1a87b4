"""`register_operator`: what is registered can be chosen, and what breaks the contract is named in one sentence."""

import pytest
import torch
from torch import nn

from convrepro import register_operator
from convrepro.config.compose import choices, compose_config
from convrepro.config.plugins import describe
from convrepro.config.scientific import scientific
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from convrepro.ops import ConvOperator, GroupPointwise
from support.outside import own_registry

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_registry():
    with own_registry():
        yield


class Mine(GroupPointwise):
    """Mine, in one line."""

    where = "all"

    def __init__(self, *args, gain: float = 2.0, sizes: tuple[int, ...] = (1, 2), num_groups: int = 2, **shape):
        super().__init__(*args, num_groups=num_groups, **shape)


def constructor(*names: str) -> type:
    """An operator whose constructor has these parameters alone."""
    space: dict = {}
    exec(f"def __init__(self, {', '.join(names)}): pass", space)
    members = {"__init__": space["__init__"], "macs": lambda *_: 0, "reset_parameters": lambda *_: None}
    members["forward"] = lambda _, x: x
    return type("Mine", (ConvOperator,), members)


WORDS = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"]
WORDS += ["padding_mode", "device", "dtype"]


class Own(constructor(*WORDS, "*", "gain=2.0", "sizes=(1, 2)")):
    """Own, in one line.

    And more.
    """

    where = "all"


def test_a_registered_operator_is_a_choice_with_the_knobs_of_its_signature():
    assert register_operator("own", Own) is Own
    assert "own" in choices("conv")
    assert describe("conv", "own") == "Own, in one line."
    cfg = compose_config(["conv=own", "conv.gain=3"])
    assert cfg.conv.model_dump() == {"name": "own", "where": "all", "gain": 3, "sizes": [1, 2]}
    assert scientific(cfg)["conv"] == {"name": "own", "where": "all", "gain": 3, "sizes": [1, 2]}
    with pytest.raises(ConvReproError, match=r"conv=own has no key 'gains' \(did you mean gain\?\)"):
        compose_config(["conv=own", "conv.gains=3"])


def test_a_decorated_operator_is_built_into_a_network_and_may_be_registered_again():
    @register_operator("mine")
    class Decorated(GroupPointwise):
        """Decorated."""

    register_operator("mine", Decorated)
    network, report = build_network(compose_config(["model=resnet20_cifar", "conv=mine", "conv.num_groups=2"]))
    assert {type(network.get_submodule(swap.name)) for swap in report.replaced} == {Decorated}
    with pytest.raises(ConvReproError, match=r"conv\.num_groups=two must be a whole number; knobs of mine: num_groups"):
        build_network(compose_config(["conv=mine", "conv.num_groups=two"]))


@pytest.mark.parametrize(
    ("name", "operator", "says"),
    [
        ("hetconv", Own, "operator name 'hetconv' is taken by convrepro.ops.hetconv.HetConv2d; choose another"),
        ("standard", Own, "operator name 'standard' is taken by torch.nn.modules.conv.Conv2d; choose another"),
        ("a-b", Own, "operator name 'a-b' must be an identifier: letters, digits and _, no digit first"),
        ("o", nn.Conv2d, "Conv2d must be a class derived from convrepro.ops.ConvOperator"),
        ("o", 3, "3 must be a class derived from convrepro.ops.ConvOperator"),
        ("o", type("Bare", (ConvOperator,), {}), "Bare lacks the method 'macs'"),
        ("o", type("Bare", (ConvOperator,), {"macs": 0}), "Bare lacks the method 'reset_parameters'"),
        ("o", constructor(*WORDS[:3]), "Mine.__init__ lacks the parameter 'stride'; it takes those of nn.Conv2d"),
        ("o", constructor(*WORDS[:3], "p", *WORDS[3:]), "has the parameter 'p' where nn.Conv2d has 'stride'; knobs"),
        ("o", constructor(*WORDS, "*", "p"), "Mine: knob 'p' has no default; it needs one that YAML can hold"),
        ("o", constructor(*WORDS, "*", "p=set()"), "Mine: knob 'p' has the default set(); it needs one that YAML"),
        ("o", Mine, "Mine.__init__ lacks the parameter 'in_channels'"),
        ("o", type("Bare", (Own,), {"forward": nn.Module.forward}), "Bare lacks the method 'forward'"),
    ],
)
def test_what_breaks_the_contract_is_one_sentence(name, operator, says):
    before = choices("conv")
    with pytest.raises(ConvReproError) as error:
        register_operator(name, operator)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert choices("conv") == before


def test_the_linear_form_is_registered_with_the_operator():
    from convrepro.ops import LinearOperator

    class OwnLinear(LinearOperator):
        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, num_groups: int = 2):
            super().__init__(in_features, out_features)
            self.num_groups = num_groups
            self.weight = nn.Parameter(torch.zeros(out_features, in_features, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

        def reset_parameters(self, init="torch"):
            pass

        def macs(self, out_h, out_w):
            return out_h * out_w * self.weight.numel()

        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias)

    class Both(GroupPointwise):
        pass

    register_operator("both", Both, linear=OwnLinear)
    overrides = ["model=resnet20_cifar", "conv=both", "conv.where=all", "data=cifar10", "conv.num_groups=1"]
    network, _ = build_network(compose_config(overrides))
    assert isinstance(network.get_classifier(), OwnLinear)
