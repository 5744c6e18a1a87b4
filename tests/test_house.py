"""What must start fast imports nothing heavy, operators are pure torch, files stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import convrepro

SOURCE = Path(convrepro.__file__).parent


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "convrepro" else {f"convrepro.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


FILES = [p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" or p.parent != SOURCE]


@pytest.mark.parametrize("path", sorted((SOURCE / "ops").glob("*.py")), ids=lambda p: p.name)
def test_operators_are_pure_torch(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"timm", "lightning", "hydra", "omegaconf", "fvcore"}


@pytest.mark.parametrize("words", [["list"], ["show", "hetconv/table1"], ["--help"], ["run", "--help"]])
def test_light_commands_import_nothing_heavy(words):
    heavy = {"torch", "lightning", "timm", "wandb", "fvcore"}
    code = (
        "import sys\nfrom convrepro.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*FILES, *Path(__file__).parent.rglob("*.py")], ids=lambda p: p.name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
