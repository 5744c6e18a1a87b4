"""What must start fast imports nothing heavy, and files stay short. Which room imports which: import-linter."""

import subprocess
import sys
from pathlib import Path

import pytest

import convrepro

SOURCE = Path(convrepro.__file__).parent


FILES = [p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" or p.parent != SOURCE]


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
