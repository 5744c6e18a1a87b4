"""Imports go one way, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import convrepro

SOURCE = Path(convrepro.__file__).parent
#: A module may import only from modules of a lower level (or of its own package).
LEVELS = {
    "errors": 0, "interruption": 0, "locks": 0, "paths": 0, "ops": 0,
    "counting_rules": 1, "zoo": 1, "surgery": 1, "tables": 1, "confidential": 1, "result": 1, "identity": 1,
    "environment": 1, "weights": 1,
    "speed_record": 1.5, "speed_page": 2,
    "models": 2, "deploy": 2, "complexity": 3, "data": 2, "optim": 2, "evidence": 2, "coverage_record": 2,
    "config": 2, "plan": 2, "run_folder": 2, "run_summary": 2, "fragments": 2,
    "module": 3, "tracking": 3, "checkpoints": 3, "progress": 3,
    "plots": 3, "page": 4,
    "train": 4,
    "wandb_sync": 4, "dashboard_panels": 3, "dashboard": 5, "dashboard_runs": 6,
    "audit": 3, "statics": 5, "sweep": 5, "runner": 5, "bench": 5, "coverage": 5,
    "cluster": 6, "speed": 6, "commands": 7, "cli": 8,
}  # fmt: skip


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "convrepro" else {f"convrepro.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = [p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" or p.parent != SOURCE]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    own = part(path)
    assert own in LEVELS, f"{own} has no level: add it to LEVELS"
    for name in imported(path):
        if name.startswith("convrepro."):
            other = name.split(".")[1]
            assert other == own or LEVELS[other] < LEVELS[own], f"{own} must not import {other}"


@pytest.mark.parametrize("path", sorted((SOURCE / "ops").glob("*.py")), ids=lambda p: p.name)
def test_operators_are_pure_torch(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"timm", "lightning", "hydra", "omegaconf", "fvcore"}


@pytest.mark.parametrize("words", [["list"], ["show", "hetconv/table1"], ["--help"], ["run", "--help"]])
def test_light_commands_import_nothing_heavy(words):
    heavy = {"torch", "lightning", "timm", "wandb", "fvcore"}
    code = (
        "import sys\nfrom convrepro.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*FILES, *Path(__file__).parent.glob("*.py")], ids=lambda p: p.name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
