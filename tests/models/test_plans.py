"""Layer plans, patterns of names, layers that an operator cannot replace, weights that are read, nested pairs."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from convrepro.errors import ConvReproError
from convrepro.models.build import build
from convrepro.models.export import fuse
from convrepro.models.pairs import find_pairs
from convrepro.models.reads import Reads
from convrepro.models.surgery import Entry, NothingToReplace, SurgeryReport, replace_by_plan, replace_convs
from convrepro.ops import GroupPointwise, HetConv2d, ShiftConv2d

pytestmark = pytest.mark.unit


def stages() -> nn.Sequential:
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks)


def names(report: SurgeryReport) -> list[list[str]]:
    """The names of the replaced layers, for each entry."""
    return [[s.name for s in report.replaced if s.entry == index] for index in range(len(report.entries))]


PLAN = [
    Entry("standard", "dense_kxk", {}, ["4.*"]),
    Entry("hetconv", "dense_kxk", {"p": 2}, ["1.*"]),
    Entry("shift", "dense_kxk", {}, ["[12].*"]),
    Entry("gwc_pwc", "dense_kxk", {"num_groups": 2}),
]


def test_a_network_of_a_plan_computes_what_a_twin_built_by_hand_computes():
    network = stages()
    report = replace_by_plan(network, PLAN)
    assert names(report) == [[], ["1.0"], ["2.0"], ["3.0"]]
    assert report.kept == {"0": "first", "4.0": "standard in the plan"}
    assert report.summary() == (
        "hetconv(p=2) at dense_kxk in 1.*: 1 replaced; shift at dense_kxk in [12].*: 1 replaced; "
        "gwc_pwc(num_groups=2) at dense_kxk: 1 replaced; kept 1 first, 1 standard in the plan"
    )
    twin = stages()
    twin[1][0] = HetConv2d(8, 8, 3, padding=1, p=2)
    twin[2][0] = ShiftConv2d(8, 8, 3, padding=1)
    twin[3][0] = GroupPointwise(8, 8, 3, padding=1, num_groups=2)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(network(x), twin(x))
    fused, _ = fuse(network)
    torch.testing.assert_close(fused(x), network.eval()(x), rtol=1e-4, atol=1e-4)


def test_weights_are_converted_entry_by_entry():
    network = stages().eval()
    before, x = copy.deepcopy(network), torch.randn(2, 3, 12, 12)
    plan = [Entry("hetconv", "dense_kxk", {"p": 1}, ["1.*"]), Entry("shift", "dense_kxk", {}, ["2.*"])]
    replace_by_plan(network, plan, convert=True)
    torch.testing.assert_close(network[:2](x), before[:2](x), rtol=1e-4, atol=1e-5)
    assert torch.equal(network[2][0].weight, before[2][0].weight)
    with pytest.raises(ConvReproError, match=r"layer '3.0': operator gwc_pwc cannot take over weights; start without"):
        replace_by_plan(before, PLAN, convert=True, unfit="keep")


def test_a_checkpoint_of_a_plan_starts_this_plan_and_no_other(tmp_path):
    def conv(p: int) -> dict:
        entry = {"include": "layer1.*", "name": "hetconv", "where": "dense_kxk", "p": p}
        return {"name": "plan", "entries": [entry, {"name": "shift", "where": "dense_kxk"}]}

    trained, report = build("resnet20_cifar", conv=conv(2), num_classes=10)
    assert list(map(len, names(report))) == [6, 12]
    settings = {"model": "resnet20_cifar", "conv": conv(2) | {"entries": [{**e} for e in conv(2)["entries"]]}}
    settings["conv"]["entries"][0]["include"] = ["layer1.*"]
    torch.save({"state_dict": trained.state_dict(), "settings": settings}, tmp_path / "x.ckpt")
    again, report = build("resnet20_cifar", conv=conv(2), num_classes=10, weights=str(tmp_path / "x.ckpt"))
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    assert str(report.weights).endswith("with plan:hetconv(p=2)+shift in place")
    with pytest.raises(ConvReproError, match=r"were trained with conv.entries=.*'p': 2.*is given"):
        build("resnet20_cifar", conv=conv(4), num_classes=10, weights=str(tmp_path / "x.ckpt"))


def test_patterns_choose_among_the_layers_of_a_rule():
    report = replace_convs(stages(), "hetconv", "dense_kxk", {"p": 2}, include=["[123].*"], exclude=["*2.0"])
    assert names(report) == [["1.0", "3.0"]]
    assert report.kept == {"0": "first", "2.0": "in exclude", "4.0": "not in include"}
    assert report.summary() == (
        "hetconv at dense_kxk in [123].* but *2.0: 2 replaced; kept 1 first, 1 in exclude, 1 not in include"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"include": ["layer2"]}, "include: 'layer2' matches no layer of the network; layer2.* matches the layers in"),
        ({"exclude": ["layr1.*"]}, "exclude: 'layr1.*' matches no layer of the network; near: layer1.2, layer1.1"),
        (
            {"include": ["conv1"]},
            "matches none of its 19 convolutions (1 first, 18 dense kxk) with include conv1; rules",
        ),
        ({"unfit": "skip"}, "unfit=skip does not exist; valid: refuse, keep"),
        ({"part_of": nn.Sequential()}, "part_of is a network that does not contain the model"),
    ],
)
def test_a_choice_that_selects_nothing_is_an_error(words, says):
    with pytest.raises(ConvReproError, match=re.escape(says)):
        replace_convs(timm.create_model("resnet20_cifar"), "hetconv", "dense_kxk", {"p": 2}, **words)


def test_an_entry_whose_layers_are_taken_is_an_error_and_changes_nothing():
    network = stages()
    plan = [Entry("shift", "dense_kxk"), Entry("hetconv", "dense_kxk", {"p": 2}, ["2.*"])]
    with pytest.raises(NothingToReplace, match=r"with include 2.\* that an earlier entry of the plan leaves"):
        replace_by_plan(network, plan)
    assert repr(network) == repr(stages())


def test_layers_that_the_operator_rejects_are_kept_on_demand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 6, 3))
    even = "kernel_size=(2, 2) must be odd to have a centre; valid: 1, 3, 5, ..."
    with pytest.raises(ConvReproError, match=re.escape(f"layer '1': {even}")):
        replace_convs(network, "hetconv", "dense_kxk", {"p": 4})
    with pytest.raises(ConvReproError, match=re.escape(f"that can be replaced (1 {even})")):
        replace_convs(copy.deepcopy(network[:2]), "hetconv", "dense_kxk", {"p": 4}, unfit="keep")
    report = replace_convs(network, "hetconv", "dense_kxk", {"p": 4}, unfit="keep")
    assert names(report) == [["2"]]
    assert report.kept["1"] == even
    assert report.kept["3"].startswith("p=4 must divide out_channels=6")


def test_grouped_convolutions_have_a_rule_and_other_kinds_a_reason():
    network = nn.ModuleDict(
        {
            "stem": nn.Conv2d(4, 8, 3),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "line": nn.Conv1d(8, 8, 3),
            "up": nn.ConvTranspose2d(8, 8, 2),
            "volume": nn.Conv3d(8, 8, 3),
        }
    )
    others = {"line": "Conv1d", "up": "ConvTranspose2d", "volume": "Conv3d"}
    reasons = {name: f"{kind}, not a Conv2d" for name, kind in others.items()}
    report = replace_convs(network, "sparse", "grouped", {"density": 0.5})
    assert names(report) == [["grouped"]]
    assert report.kept == {"stem": "first", "depthwise": "depthwise"} | reasons
    with pytest.raises(ConvReproError, match=r"it has no convolution but 1 Conv1d, not a Conv2d; rules"):
        replace_convs(nn.Sequential(nn.Conv1d(8, 8, 3)), "hetconv", "all", {"p": 1})


def test_the_exempt_convolution_is_the_first_of_the_whole_network():
    network = stages()
    assert names(replace_convs(network[1], "hetconv", "dense_kxk", {"p": 2}, part_of=network)) == [["0"]]
    with pytest.raises(NothingToReplace):
        replace_convs(stages()[1], "hetconv", "dense_kxk", {"p": 2})


def standardized(conv: nn.Conv2d) -> Tensor:
    return conv.weight - conv.weight.mean()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)]))
        self.plain = nn.Conv2d(4, 4, 3)
        self.every = [self.plain]

    @property
    def second(self) -> nn.Module:
        return self.inner[1][1]

    def _used(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.plain.weight)

    def unused(self) -> Tensor:
        return self.inner[0].weight


class OtherWord(Base):
    def forward(this, x):
        return this.plain(F.conv2d(x, this.inner[0].weight))


class Alias(Base):
    def forward(self, x):
        one, (two, _) = self.plain, self.inner[1]
        return self.inner[0](F.conv2d(x, one.weight, two.bias))


class Loop(Base):
    def forward(self, x):
        for _, conv in enumerate(self.inner[1]):
            x = F.conv2d(x, conv.weight)
        return x + sum(conv.bias for conv in self.every)


class Helper(Base):
    def forward(self, x):
        return F.conv2d(F.conv2d(x, standardized(self.second)), getattr(self, "plain").weight)  # noqa: B009


class Method(Base):
    def forward(self, x):
        return self.inner[0](self._used(x))


class Super(Alias):
    def forward(self, x):
        return super().forward(x)


FORMS = [
    (OtherWord, {"inner.0"}),
    (Alias, {"plain", "inner.1.0", "inner.1.1"}),  # of an unpacked list each name may be each element
    (Loop, {"inner.1.0", "inner.1.1", "plain"}),
    (Helper, {"inner.1.1", "plain"}),
    (Method, {"plain"}),
    (Super, {"plain", "inner.1.0", "inner.1.1"}),
    (Base, set()),
]


@pytest.mark.parametrize(("form", "read"), FORMS, ids=[form.__name__ for form, _ in FORMS])
def test_a_weight_that_an_ancestor_reads_is_found_whatever_the_form(form, read):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), form())
    found = Reads(network).readers
    assert {name.removeprefix("1.") for name, module in network.named_modules() if module in found} == read
    if len(read) < 4 and read:
        report = replace_convs(network, "hetconv", "dense_kxk", {"p": 2})
        kept = {name.removeprefix("1.") for name, why in report.kept.items() if why.startswith("weight read by ")}
        assert kept == read


def test_a_reader_whose_source_is_not_at_hand_is_read_by_its_names():
    space: dict = {"nn": nn}
    exec("class Made(nn.Sequential):\n    def forward(self, x): return x @ self.lin.weight", space)
    network = space["Made"]()
    network.lin, network.other = nn.Linear(4, 4), nn.Linear(4, 4)
    report = replace_convs(network, "shift", "all")
    assert names(report) == [["other"]]
    assert report.kept == {"lin": "weight read by Made.forward"}


class Tail(nn.Module):
    """A module of its own that begins with a 1x1 convolution, used once or as one of two branches."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.pw, self.beside, self.branches = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1), branches

    def forward(self, x: Tensor) -> Tensor:
        return self.pw(x) + self.beside(x) if self.branches else self.pw(x)


def nested(branches: bool = False) -> nn.Sequential:
    first = Conv2dNormActivation(8, 8, 3, stride=2, groups=8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), first, nn.BatchNorm2d(8), Tail(branches)).eval()


def test_a_pair_across_modules_becomes_one_convolution():
    network, x = nested(), torch.randn(2, 3, 12, 12)
    state = torch.get_rng_state()
    assert [(site.name, site.merged) for site in find_pairs(network)] == [("3.pw", ("1.0", "1.1", "1.2", "2"))]
    assert torch.equal(torch.get_rng_state(), state)
    report = replace_convs(network, "hetconv", "dw_pw_pair", {"p": 4}, include=["1.*"])
    assert names(report) == [["3.pw"]]
    assert all(isinstance(m, nn.Identity) for m in (*network[1], network[2]))
    oracle = F.conv2d(network[0](x), network[3].pw.dense_weight(), network[3].pw.bias, stride=2, padding=1)
    torch.testing.assert_close(network(x), oracle, rtol=1e-4, atol=1e-5)
    with pytest.raises(NothingToReplace):
        replace_convs(nested(branches=True), "hetconv", "dw_pw_pair", {"p": 4})


def test_the_pairs_of_convnext_lie_in_two_modules():
    network = timm.create_model("convnext_atto", num_classes=10, depths=(1, 1, 1, 1))
    report = replace_convs(network, "hetconv", "dw_pw_pair", {"p": 8})
    assert names(report) == [[f"stages.{stage}.blocks.0.mlp.fc1" for stage in range(4)]]
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
