"""Spaces: every network that they have can be built, costs what they say, and is written as plain overrides."""

import random

import pytest

from convrepro.config.compose import compose_config
from convrepro.config.plugins import SPACES, files
from convrepro.errors import ConvReproError
from convrepro.evidence.counts import count
from convrepro.models.build import build_network
from convrepro.search.space import DENSE, Cost, Definition, Space, composed, definition

pytestmark = pytest.mark.unit

RESNET = ("model=resnet8_cifar", "data=fashion_sample", "model_args.stem_stride=2")
#: Choices of which some fit nowhere (11), some in wide layers alone (32), and igcv1 in part of them.
ODD = Definition(
    name="odd",
    where="dense_kxk",
    group=None,
    choices=["hetconv(p=11,32)", "igcv1(primary_partitions=64)", "dwc_pwc", "low_rank(rank=0.25)"],
    options={},
)


def drawn(space: Space, number: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    return [{name: draw.choice(choices) for name, choices in space.dimensions.items()} for _ in range(number)]


def counted(space: Space, params: dict[str, str]) -> Cost:
    found, _ = count(composed(space, params))
    return Cost(int(found.total("macs")), int(found.total("params")))


@pytest.fixture(scope="module")
def odd():
    return Space(ODD, RESNET)


def test_what_does_not_fit_a_layer_is_none_of_its_choices(odd):
    assert "hetconv(p=11)" not in {choice for choices in odd.dimensions.values() for choice in choices}
    assert "p=11 must divide" in odd.refused["hetconv(p=11)"]
    takes = {name for name, choices in odd.dimensions.items() if "hetconv(p=32)" in choices}
    assert takes == {"layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2"} | takes
    assert "layer1.0.conv1" not in takes
    assert all(choices[0] == DENSE for choices in odd.dimensions.values())


@pytest.mark.heavy
def test_every_network_of_a_space_can_be_built_with_what_was_chosen(odd):
    for params in drawn(odd, 12):
        _, report = build_network(composed(odd, params))
        replaced = {swap.name for swap in report.replaced}
        assert replaced == {name for name, choice in params.items() if choice != DENSE}
        assert all("dwc" in params[s.name] for s in report.replaced if "DepthwisePointwise" in s.after)


def test_a_network_costs_what_is_counted_in_it(odd):
    for params in drawn(odd, 4, seed=1):
        assert odd.cost(params) == counted(odd, params)
    dense = dict.fromkeys(odd.dimensions, DENSE)
    assert odd.overrides(dense) == ("conv=standard",)
    assert odd.cost(dense) == odd.dense == counted(odd, dense)


def test_the_least_cost_is_that_of_the_cheapest_network(odd):
    cheapest = {
        name: min(choices, key=lambda choice: odd.cost(dict.fromkeys(odd.dimensions, DENSE) | {name: choice}).macs)
        for name, choices in odd.dimensions.items()
    }
    assert odd.least.macs == counted(odd, cheapest).macs
    assert all(odd.cost(params).macs >= odd.least.macs for params in drawn(odd, 50))


@pytest.mark.heavy
def test_a_uniform_network_has_its_operator_wherever_it_fits(odd):
    uniform = odd.uniform()
    assert list(uniform) == ["hetconv(p=32)", "igcv1(primary_partitions=64)", "dwc_pwc", "low_rank(rank=0.25)"]
    for title, params in uniform.items():
        assert {name for name, choice in params.items() if choice == title} == {
            name for name, choices in odd.dimensions.items() if title in choices
        }


@pytest.mark.parametrize("name", sorted(files(SPACES)))
@pytest.mark.heavy
def test_each_space_of_ours_has_networks(name):
    base = ("model=mobilenetv2_050", "data=cifar10") if name == "pairs" else RESNET
    space = Space(definition(name), base)
    assert space.size > 100
    (params,) = drawn(space, 1)
    assert space.cost(params) == counted(space, params)


@pytest.mark.heavy
def test_the_layers_of_a_stage_choose_together():
    space = Space(definition("stages"), RESNET)
    assert list(space.members) == ["layer1", "layer2", "layer3"]
    params = {"layer1": DENSE, "layer2": "dwc_pwc", "layer3": "dwc_pwc"}
    _, report = build_network(composed(space, params))
    assert {swap.name.split(".")[0] for swap in report.replaced} == {"layer2", "layer3"}
    assert len(report.replaced) == 4


@pytest.mark.heavy
def test_options_are_dimensions_of_the_whole_network():
    options = {"se_reduction": [None, 4], "model_args.widths": [[16, 32, 64], [8, 16, 32]]}
    choices = ["hetconv(p=8,16)", "dwc_pwc"]
    space = Space(Definition(name="options", where="dense_kxk", group=1, choices=choices, options=options), RESNET)
    assert space.dimensions["se_reduction"] == ("null", "4")
    assert "hetconv(p=16)" not in space.dimensions["layer1"], "it does not fit the narrow network"
    seen = set()
    for params in drawn(space, 4):
        assert space.cost(params) == counted(space, params)
        seen.add((params["se_reduction"], params["model_args.widths"]))
    assert len(seen) > 1
    gated = dict.fromkeys(space.members, DENSE) | {"se_reduction": "4", "model_args.widths": "[8,16,32]"}
    _, report = build_network(composed(space, gated))
    assert len(report.replaced) == 6, "dense layers have squeeze-and-excitation as the others"


@pytest.mark.parametrize(
    ("changes", "base", "says"),
    [
        ({"choices": ["hetconv(p=11)"]}, RESNET, "has no layer that an operator of --space odd can replace: "),
        ({"where": "dw_pw_pair"}, RESNET, "resnet8_cifar has no layer that an operator of --space odd can replace"),
        ({"choices": ["dense"]}, RESNET, "dense is always a choice"),
        ({"choices": ["hetconv(p"]}, RESNET, "is no operator"),
        ({"options": {"se_reduction": list(range(1, 40))}}, RESNET, "39 combinations; at most 32"),
        ({}, ("model=resnet8_cifar", "data=nothing"), "data=nothing does not exist"),
    ],
)
def test_a_space_without_networks_says_why(changes, base, says):
    with pytest.raises(ConvReproError) as error:
        Space(ODD.model_copy(update=changes), base)
    assert says in str(error.value)


def test_a_file_with_a_mistake_is_a_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "search"
    folder.mkdir()
    monkeypatch.setenv("CONVREPRO_CONFIG_DIR", str(tmp_path))
    good = "name: mine\nwhere: dense_kxk\ngroup: null\nchoices: [dwc_pwc]\noptions: {}\n"
    for number, (change, says) in enumerate(
        [
            (("where: dense_kxk", "where: here"), "where='here' does not exist; valid: dense_kxk"),
            (("group: null", "group: 0"), "group"),
            (("choices: [dwc_pwc]", "choices: []"), "choices"),
            (("options: {}", "options: {seed: [1, 2]}"), "options.seed=[1, 2] must be the values"),
            (("options: {}", "option: {}"), "option"),
        ]
    ):
        (folder / f"mine{number}.yaml").write_text(good.replace(*change))
        with pytest.raises(ConvReproError) as error:
            definition(f"mine{number}")
        assert says in str(error.value)
    (folder / "mine.yaml").write_text(good)
    assert definition("mine").choices == ["dwc_pwc"]
    with pytest.raises(ConvReproError, match=r"--space 'yours' does not exist; valid: mine, .*operators"):
        definition("yours")


def test_a_configuration_of_a_run_knows_no_space():
    with pytest.raises(ConvReproError, match="search"):
        compose_config(["search=operators"])
