"""The public interface: what `import convrepro` offers to a user's own program."""

import re
from pathlib import Path

import pytest
import timm
import yaml
from torch import nn

import convrepro
from convrepro.models.surgery import SurgeryReport
from convrepro.tables import list_tables, load_table

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", convrepro.__all__)
def test_a_public_name_resolves_and_is_listed(name):
    assert getattr(convrepro, name) is not None
    assert name in dir(convrepro)


@pytest.mark.parametrize("name", [name for name in convrepro.__all__ if name.islower()])
def test_a_public_function_says_what_it_does(name):
    assert len(getattr(convrepro, name).__doc__.splitlines()) > 3


def test_an_unknown_name_is_an_error_with_the_valid_names():
    valid = "OPERATORS, ConvReproError, build, count, register_operator, replace_convs"
    with pytest.raises(AttributeError, match=rf"no attribute 'replace'; valid: {valid}$"):
        _ = convrepro.replace


def test_build_gives_a_network_with_its_convolutions_replaced():
    conv = {"name": "hetconv", "where": "dense_kxk", "p": 4}
    network, report = convrepro.build("resnet20_cifar", conv=conv, num_classes=10)
    assert isinstance(report, SurgeryReport)
    assert {type(network.get_submodule(swap.name)) for swap in report.replaced} == {convrepro.OPERATORS["hetconv"]}
    assert convrepro.OPERATORS["standard"] is nn.Conv2d


@pytest.mark.parametrize("size", [None, 32, (3, 32), (3, 0, 32), (3, -32, 32), ("3", 32, 32), (3, 32, 32, 32)])
def test_what_is_no_image_size_is_an_error_that_shows_it(size):
    with pytest.raises(convrepro.ConvReproError, match=re.escape(f"input_size={size!r} must be three positive")):
        convrepro.count(timm.create_model("resnet18"), size)


def test_an_image_that_a_network_does_not_take_is_an_error():
    with pytest.raises(convrepro.ConvReproError, match=r"does not take an image of 1x32x32: .*to have 3 channels"):
        convrepro.count(timm.create_model("resnet18"), (1, 32, 32))


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"conv": "hetconv"}, "conv=hetconv must be a mapping"),
        ({"conv": {}}, "`conv.name` is missing"),
        ({"in_chans": 0}, "in_chans=0 must be at least 1"),
        ({"num_classes": -1}, "num_classes=-1 must be at least 0"),
        ({"name": None}, "name=null must be text"),
        ({"name": "resnet81"}, "did you mean resnet18"),
        ({"weights": Path("nowhere.pt")}, "nowhere.pt do not exist"),
    ],
)
def test_what_no_network_can_be_built_from_is_an_error(given, rule):
    with pytest.raises(convrepro.ConvReproError, match=re.escape(rule)):
        convrepro.build(
            **{"name": "resnet18", "conv": {"name": "standard", "where": "all"}, "num_classes": 10, **given}
        )


def test_the_example_of_the_readme_runs(capsys):
    (example,) = re.findall(r"## From Python\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = [line.partition("# ")[2] for line in example.splitlines() if line.startswith("print")]
    assert capsys.readouterr().out.splitlines() == printed


def test_the_citation_is_of_this_version_and_names_each_paper_that_has_a_table():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{convrepro.__version__}"' in project
    assert citation["version"] == convrepro.__version__
    assert f'license = "{citation["license"]}"' in project
    cited = {number["value"] for work in citation["references"] for number in work["identifiers"]}
    papers = {load_table(name).source.arxiv for name in list_tables()} - {""}
    assert cited == {f"arXiv:{paper}" for paper in papers}
