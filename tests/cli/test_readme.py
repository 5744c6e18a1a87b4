"""What README and the pages for contributors tell a newcomer to type is valid, and what they name exists."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from convrepro.cli.command import parse
from convrepro.cli.selection import each_table, load_tables
from convrepro.config.compose import check_overrides, compose_config
from convrepro.models.build import build_network
from convrepro.training.sweep import members

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / ".github").glob("*.md"))]
NOTES = sorted(ROOT.glob("reproductions/*/notes.md"))
#: What is typed after an operator or a table was added is typed by test_readme_examples.py.
USES = [re.sub(r"\n## Add an? [^`]*?\n\n```.*?(?=\n## |\Z)", "", page.read_text(), flags=re.DOTALL) for page in PAGES]
BLOCKS = [block for text in USES for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
LINES = [line for block in BLOCKS for line in re.findall(r"^convrepro .*$", block, re.MULTILINE)]
EXAMPLES = [line.split("#")[0].strip() for line in LINES]
#: A checkpoint that a line of the same example writes.
CHECKPOINT = "weights=LAST.ckpt"


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_valid(line):
    arguments = parse(shlex.split(line)[1:])
    if hasattr(arguments, "table"):
        assert each_table(argparse.Namespace(**{"overrides": [], **vars(arguments)}))
    if hasattr(arguments, "tables"):
        assert load_tables(arguments.tables)
    if arguments.verb == "train":
        if any(word.startswith("hydra/sweeper=") for word in arguments.overrides):
            assert check_overrides(arguments.overrides, sweep=True)
            return
        for overrides in members(arguments.overrides) if arguments.multirun else [arguments.overrides]:
            left_out = ("hydra", CHECKPOINT)
            build_network(compose_config([word for word in overrides if not word.startswith(left_out)]))


def test_the_two_commands_stand_at_the_top_and_set_up_everything():
    main_job, tests = re.findall(r"```bash\n(python3 -m venv .*)\n```", README)[:2]
    assert README.index(main_job) < 1500
    assert "pip install -e ." in main_job
    assert "convrepro run" in main_job
    assert "pytest" in tests


def by_name(pages: list[Path]) -> dict[str, object]:
    return {"argvalues": pages, "ids": [page.relative_to(ROOT).as_posix() for page in pages]}


@pytest.mark.parametrize("page", **by_name([*PAGES, *NOTES]))
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", **by_name([*PAGES, *NOTES]))
def test_every_path_that_is_named_exists(page):
    """Of a file or folder of the project, of a test by its path in `tests`, or of a table."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    folders = {path.name for place in (ROOT, ROOT / "tests") for path in place.iterdir() if path.is_dir()}
    folders |= {path.parent.name for path in NOTES}
    for name in re.findall(r"`((?:[\w.]+/)+[\w.]*)(?:::[\w.]+)?`", text):
        found = [ROOT / name, ROOT / "tests" / name, ROOT / "reproductions" / f"{name}.yaml"]
        assert name.split("/")[0] not in folders or any(path.exists() for path in found), name


def test_the_workflow_runs_the_checks_of_the_test_command():
    (command,) = re.findall(r"<!-- test command -->\n```bash\n(.*)\n```", README)
    checks = [part.strip().removeprefix(".venv/bin/") for part in command.split("&&")][2:-1]
    assert checks == ["ruff check", "ruff format --check", "lint-imports", "mypy"]
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["checks"]["steps"]
    lines = [part.strip() for step in steps for part in step.get("run", "").split("&&")]
    assert [line for line in lines if line in checks] == checks
    fast = lines[-1]
    assert f"`{fast}`" in (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["name"] for hook in hooks] == [check.removesuffix(" --check") for check in checks]
