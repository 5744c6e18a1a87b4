"""The kernels that wait for a GPU equal their definitions, in Triton's interpreter, and compile for one.

`interpreted_candidates.py` has the tests of the first kind.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER))  # where the scripts find each other

SHIFT = {"BITS": 5, "LOWEST": -14, "ZERO": True}
KERNELS = {
    "candidate_shift.shift_rows": SHIFT | {"FILTERS": 4, "WORDS": 128},
    "candidate_shift.shift_tiles": SHIFT | {"PRECISION": "ieee", "ROWS": 64, "FILTERS": 64, "WORDS": 32},
    "candidate_pointwise.group_pointwise": {"PRECISION": "ieee", "ROWS": 128, "COLUMNS": 32, "DEPTH": 32},
    "candidate_separable.depthwise_pointwise": {"KERNEL": 3, "STRIDE": 1, "PADDING": 1, "RELU": True}
    | {"PRECISION": "ieee", "ROWS": 64, "COLUMNS": 128, "DEPTH": 32},
}
"""Kernels and what they are compiled for."""
TENSORS = {"x", "y", "bias", "weight", "depthwise", "between", "pointwise"}
"""Arguments in bfloat16; `words` are int32, and the others are numbers."""
OLDEST, SHARED_MEMORY = 80, 99 * 1024
"""An A100's architecture, and the least shared memory that a program may have on a GPU since."""


@pytest.mark.parametrize("name", KERNELS)
def test_candidates_compile_for_a_gpu_in_bfloat16(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module, function = name.split(".")
    kernel, constants = getattr(importlib.import_module(module), function), KERNELS[name]
    types = {word: "*bf16" if word in TENSORS else "*i32" if word == "words" else "i32" for word in kernel.arg_names}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    made = triton.compile(source, target=GPUTarget("cuda", OLDEST, 32))
    assert made.asm["cubin"]
    assert made.metadata.shared <= SHARED_MEMORY


def test_candidates_under_triton_s_interpreter() -> None:
    pytest.importorskip("triton")
    file = FOLDER / "interpreted_candidates.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    ran = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
