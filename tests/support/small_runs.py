"""Small runs on the bundled images, in this process and in others, and what must be equal between two of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from convrepro.config.compose import compose_config
from convrepro.training.run import run

TINY = ["budget.train_examples=256", "budget.test_examples=100", "trainer=cpu", "logger=none"]
MNIST_FC = ["model=deepshift_mnist_fc", "recipe=deepshift_mnist_v5", *TINY]
#: 3 epochs of 25 steps with dropout, an optimizer that has a state, and a schedule: all of it has to survive.
EPOCHS, STEPS = 3, 25
STATEFUL = ["model=deepshift_mnist_fc", "recipe=deepshift_mnist_v5", "trainer=cpu", "logger=none"]
STATEFUL += [f"recipe.epochs={EPOCHS}", "recipe.batch_size=16", f"budget.train_examples={16 * STEPS}"]
STATEFUL += ["budget.test_examples=100", "recipe.optimizer.name=radam", "recipe.optimizer.lr=0.003"]
STATEFUL += ["recipe.schedule.name=ExponentialLR", "+recipe.schedule.args={gamma: 0.5}"]
#: Seconds after which a process that should have done something has failed; no test waits so long otherwise.
DEADLINE = 300


def train(overrides: list[str], runs: Path, echo: Callable[[str], None] = lambda line: None) -> dict:
    overrides = [*overrides, f"runs={runs}"]
    return run(compose_config(overrides), overrides, echo=echo)


def science(result: dict) -> dict:
    """What must be equal between two runs of the same thing: everything but clocks."""
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in result["history"]]
    return {"metrics": result["metrics"], "history": history, "static": result["static"]}


def start(overrides: list[str], runs: Path, first: str = "pass", **options: Any) -> subprocess.Popen:
    """`convrepro train` in a process of its own, which executes the code `first` before everything else."""
    with NamedTemporaryFile("w", dir=runs.parent, prefix="start", suffix=".py", delete=False) as script:
        script.write(f"{first}\nfrom convrepro.cli.main import main\nmain()\n")
    command = [sys.executable, script.name, "train", *overrides, f"runs={runs}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, output and errors of a process, once it has ended."""
    try:
        output, errors = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    return process.returncode, output, errors


def wait(until: Callable[[], Any], process: subprocess.Popen | None = None) -> Any:
    """What `until` returns, once that is true; fails where the process ends before."""
    deadline = time.monotonic() + DEADLINE
    while not (value := until()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def before_hook(hook: str, code: str) -> str:
    """Code that has the module execute `code`, one line, whenever its method `hook` is called."""
    return f"""
import os, pathlib, signal, time
from convrepro.training.module import Classifier
def {hook}(self, *args, then=Classifier.{hook}, **named):
    {code}
    return then(self, *args, **named)
Classifier.{hook} = {hook}
"""


def parts(runs: Path) -> list[str]:
    """Files that were left half written."""
    return [name for _, _, files in os.walk(runs) for name in files if name.endswith(".part")]
