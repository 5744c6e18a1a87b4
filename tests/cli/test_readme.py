"""What the README tells a newcomer to type is valid."""

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from convrepro.cli.main import parse
from convrepro.config.compose import compose_config
from convrepro.models.build import build_network
from convrepro.tables import load_table

pytestmark = pytest.mark.unit

README = (Path(__file__).parents[2] / "README.md").read_text()
USES = re.sub(r"### Add an? .*?(?=\n### |\n## )", "", README, flags=re.DOTALL)  # what is added: test_readme_examples.py
EXAMPLES = [line.split("#")[0].strip() for line in re.findall(r"^convrepro .*$", USES, re.MULTILINE)]


def variants(overrides: list[str]) -> list[list[str]]:
    """Each combination of a sweep's comma-separated values."""
    choices = [[f"{o.split('=')[0]}={value}" for value in o.split("=", 1)[1].split(",")] for o in overrides]
    return [list(words) for words in product(*choices)]


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_valid(line):
    arguments = parse(shlex.split(line)[1:])
    for table in [getattr(arguments, "table", None), *getattr(arguments, "tables", [])]:
        assert table is None or load_table(table)
    if arguments.verb == "train":
        for overrides in variants(arguments.overrides):
            build_network(compose_config(overrides))


def test_the_two_commands_stand_at_the_top_and_set_up_everything():
    main_job, tests = re.findall(r"```bash\n(python3 -m venv .*)\n```", README)[:2]
    assert README.index(main_job) < 1500
    assert "pip install -e ." in main_job
    assert "convrepro run" in main_job
    assert "pytest" in tests


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target
