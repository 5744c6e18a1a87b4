"""The guide's examples of adding an operator and a table, followed to the letter in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import convrepro

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / ".github" / "GUIDE.md").read_text()


def section(heading: str) -> str:
    return GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) if language in languages]


def files(text: str) -> list[str]:
    """The blocks of code, cut where a comment names the next file."""
    return [
        part for block in blocks(text, "python", "yaml") for part in re.split(r"^(?=# \S+/\S+)", block, flags=re.M)[1:]
    ]


def follow(project: Path, block: str) -> None:
    """Write the file that the block's first line names."""
    first, body = block.split("\n", 1)
    path = project / first.removeprefix("# ")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body)


def commands(text: str) -> list[str]:
    """The lines to type, without those that set variables."""
    return [line for line in "".join(blocks(text, "bash")).splitlines() if not line.startswith("export ")]


def exported(project: Path) -> dict[str, str]:
    """The variables that the guide sets for an operator's commands, and all that follow in the same shell."""
    (line,) = re.findall(r"^export (.*?)\s*#", section("Add an operator"), re.MULTILINE)
    return dict(word.replace("$PWD", str(project)).split("=", 1) for word in line.split())


def type_in(project: Path, line: str) -> str:
    words = line.split("#")[0].split()
    variables = exported(project)
    path = os.pathsep.join([str(project / "src"), variables.pop("PYTHONPATH")])
    environment = {**os.environ, **variables, "PYTHONPATH": path, "WANDB_MODE": "offline"}
    if words[0] == "convrepro":
        done = convrepro(*words[1:], cwd=project, env=environment)
    else:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words[1:]]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, with the operator of the guide added; the table uses it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "conf", "reproductions"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for part in files(section("Add an operator")):
        follow(folder, part.strip("\n") + "\n")
    return folder


@pytest.mark.parametrize("heading", ["Add an operator", "Add a table"])
def test_a_section_is_under_30_lines(heading):
    assert len(section(heading).strip().splitlines()) < 30


def test_the_operator_is_counted_and_tested(project):
    outputs = {line.split()[0]: type_in(project, line) for line in commands(section("Add an operator"))}
    assert "FixedPointwise" in outputs["convrepro"]
    assert re.search(r"\d\d passed", outputs["pytest"])


def test_the_table_is_counted_run_and_shown(project):
    text = section("Add a table")
    for part in files(text):
        follow(project, part)
    counted, trained = (type_in(project, line) for line in commands(text))
    assert "40.55" in counted
    assert "static-ok" in counted
    assert trained.count("smoke ") >= 2
