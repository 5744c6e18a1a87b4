"""The kernels that wait for a GPU equal their definitions; `interpreted_candidates.py` has the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_candidates_under_triton_s_interpreter() -> None:
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted_candidates.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    ran = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
