"""What every operator of this project promises, by the tests of `convrepro.testing`; its cases, names and files."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

from convrepro.ops import OPERATORS, knobs
from convrepro.testing import operator_tests
from support.operator_cases import CASES

pytestmark = pytest.mark.unit

CONF = Path(__file__).parents[2] / "conf" / "conv"

TestOperators = operator_tests(*CASES)


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
