"""Where a result was obtained: commit, versions, device."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "fvcore", "hydra-core", "wandb", "convrepro")


#: Below `reproductions`, what commands record, which they may do while other runs still start.
RECORDS = ("*/results/*", "coverage.json", "COVERAGE.md", "speed/*.json")
#: What git is asked about: everything else.
SOURCES = (":(top)", *(f":(top,exclude)reproductions/{path}" for path in RECORDS))


def commit() -> tuple[str | None, bool | None]:
    """The commit of the source tree that runs and whether it has uncommitted changes; (None, None) outside git.

    What `collect`, `coverage` and `bench` record in `reproductions` is no such change: no run reads it.
    """
    source = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, check=True).stdout

    try:
        if not git("ls-files", Path(__file__).name).strip():
            return None, None
        return git("rev-parse", "HEAD").strip(), bool(
            git("status", "--porcelain", "--untracked-files=no", "--", *SOURCES).strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None


def installed(package: str) -> str | None:
    """The version of an installed package; None where it is not installed, or came without its metadata."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(device: str, precision: str) -> dict[str, Any]:
    """A JSON-ready description of this process's software and hardware."""
    import torch

    revision, dirty = commit()
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "commit": revision,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "device": f"{device.split(':')[0]}: {hardware}",
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.exists())
        else []
    )
    return models[0].strip() if models else platform.processor() or platform.machine()
