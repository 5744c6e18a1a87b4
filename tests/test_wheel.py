"""The wheel carries configuration and tables, and works from an empty folder elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import command
from support.wheel import install

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return install(tmp_path_factory.mktemp("wheel"), ROOT)


def convrepro(installed: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "WANDB_MODE": "offline"}
    done = command.convrepro(*words, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_the_installed_copy_that_runs(installed, tmp_path):
    code = "import convrepro, convrepro.config.paths as p; print(convrepro.__file__, p.CONF)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert where.count(str(installed)) == 2


def test_the_licences_and_the_marker_of_a_typed_package_are_in_it(installed):
    assert (installed / "convrepro" / "py.typed").is_file()
    (metadata,) = installed.glob("convrepro-*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0" in metadata.read_text().splitlines()
    licences = {path.name for path in metadata.parent.joinpath("licenses").rglob("*") if path.is_file()}
    assert licences == {"LICENSE", "fashion_sample.LICENSE"}


def test_list_count_and_smoke_run_from_an_empty_folder(installed, tmp_path):
    assert "hetconv/table1" in convrepro(installed, tmp_path, "list")
    assert "668.7" in convrepro(installed, tmp_path, "count", "deepshift/mnist_v1")
    words = ["run", "deepshift/mnist_v5", "--budget", "smoke", "--rows", "fc_q", "--seeds", "0"]
    out = convrepro(installed, tmp_path, *words, "budget.train_examples=128", "budget.test_examples=100")
    assert "smoke" in out
    assert list((tmp_path / "runs").rglob("result.json"))


def test_the_html_page_and_the_plots_need_nothing_but_the_wheel(installed, tmp_path):
    assert convrepro(installed, tmp_path, "report", "lecture/se_overhead", "--html", "page.html") == "page.html\n"
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "addEventListener" in page
    assert "prefers-color-scheme" in page
