"""What must start fast imports nothing heavy, files stay short, and ARCHITECTURE names what exists.

Which room imports which is a contract of import-linter.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convrepro

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCE = Path(convrepro.__file__).parent
HEAVY = {"torch", "lightning", "timm", "wandb", "fvcore"}

ARCHITECTURE = (ROOT / ".github" / "ARCHITECTURE.md").read_text()
PAGES = [*sorted((ROOT / ".github").glob("*.md")), ROOT / "README.md"]
PLACES = sorted({place for page in PAGES for place in re.findall(r"`([\w/.]+\.py::[\w.]+)`", page.read_text())})

FILES = [p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" or p.parent != SOURCE]


@pytest.mark.parametrize("words", [["list"], ["show", "hetconv/table1"], ["--help"], ["run", "--help"]])
def test_light_commands_import_nothing_heavy(words):
    code = (
        "import sys\nfrom convrepro.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_interface_is_imported_when_it_is_used():
    code = f"import sys, convrepro\nassert not {HEAVY | {'hydra', 'numpy'}!r} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def named(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """The definition or assignment of `name` in `body`."""
    for node in body:
        match node:
            case ast.FunctionDef(name=found) | ast.ClassDef(name=found) | ast.AnnAssign(target=ast.Name(id=found)):
                names = [found]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case _:
                names = []
        if name in names:
            return node
    return None


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_a_page_mentions_exists(place):
    file, _, names = place.partition("::")
    node: ast.AST | None = ast.parse((ROOT / file).read_text())
    for name in names.split("."):
        node = named(node.body, name)
        assert node is not None, f"{file} has no {name}"


def test_the_rooms_of_the_architecture_are_the_folders_and_the_layers():
    listed = re.findall(r"^\| `(\w+)` \|", ARCHITECTURE, re.MULTILINE)
    (floors,) = re.findall(r"```text\n(.*?)```", ARCHITECTURE, re.DOTALL)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert floors.splitlines() == layers
    assert listed == re.findall(r"\w+", floors)
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    files = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert set(listed) == folders | files


def test_a_walk_of_the_architecture_is_a_tour_of_six_files():
    for walk in ARCHITECTURE.split("\n## ")[2:]:
        stops = re.split(r"^\d\. ", walk, flags=re.MULTILINE)[1:]
        assert len({re.search(r"`(src/[\w/.]+\.py)", stop)[1] for stop in stops}) == 6


@pytest.mark.parametrize("path", [*FILES, *Path(__file__).parent.rglob("*.py")], ids=lambda p: p.name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
