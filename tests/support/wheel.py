"""Packages as their users have them: built as wheels, and installed into a folder for PYTHONPATH."""

import subprocess
import sys
from pathlib import Path


def install(place: Path, *sources: Path) -> Path:
    """The folder, in `place`, with the packages of these source trees, without their dependencies."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place / "dist")]
    for source in sources:
        subprocess.run([*build, str(source)], check=True, capture_output=True)
    wheels = map(str, (place / "dist").glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place / "site"), *wheels]
    subprocess.run(pip, check=True, capture_output=True)
    return place / "site"
