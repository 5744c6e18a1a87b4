"""Small runs on the bundled images, in this process and in others, and what must be equal between two of them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from convrepro.config.compose import compose_config
from convrepro.training.run import run
from support.command import Python
from support.patience import PATIENCE

TINY = ["budget.train_examples=256", "budget.test_examples=100", "trainer=cpu", "logger=none"]
MNIST_FC = ["model=deepshift_mnist_fc", "recipe=deepshift_mnist_v5", *TINY]
#: 3 epochs of 25 steps with dropout, an optimizer that has a state, and a schedule: all of it has to survive.
EPOCHS, STEPS = 3, 25
STATEFUL = ["model=deepshift_mnist_fc", "recipe=deepshift_mnist_v5", "trainer=cpu", "logger=none"]
STATEFUL += [f"recipe.epochs={EPOCHS}", "recipe.batch_size=16", f"budget.train_examples={16 * STEPS}"]
STATEFUL += ["budget.test_examples=100", "recipe.optimizer.name=radam", "recipe.optimizer.lr=0.003"]
STATEFUL += ["recipe.schedule.name=ExponentialLR", "+recipe.schedule.args={gamma: 0.5}"]


def train(overrides: list[str], runs: Path, echo: Callable[[str], None] = lambda line: None) -> dict:
    overrides = [*overrides, f"runs={runs}"]
    return run(compose_config(overrides), overrides, echo=echo)


def science(result: dict) -> dict:
    """What must be equal between two runs of the same thing: everything but clocks."""
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in result["history"]]
    return {"metrics": result["metrics"], "history": history, "static": result["static"]}


def start(overrides: list[str], runs: Path, first: str = "pass", **options: Any) -> Python:
    """`convrepro train` in a process of its own, which executes the code `first` before everything else."""
    with NamedTemporaryFile("w", dir=runs.parent, prefix="start", suffix=".py", delete=False) as script:
        script.write(f"{first}\nfrom convrepro.cli.main import main\nmain()\n")
    words = [script.name, "train", *overrides, f"runs={runs}"]
    return Python(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, output and errors of a process, once it has ended."""
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, output, errors


def before_hook(hook: str, code: str) -> str:
    """Code that has the module execute `code`, one line, whenever its method `hook` is called."""
    return f"""
import os, pathlib, signal, time
from convrepro.runs import interruption
from convrepro.training.module import Classifier
def {hook}(self, *args, then=Classifier.{hook}, **named):
    {code}
    return then(self, *args, **named)
Classifier.{hook} = {hook}
"""


def before_step(step: int, marker: Path | None = None, pause: float = 0) -> str:
    """Code that has the module wait before that step, counted from 1, until it is asked to stop: however late that is,
    the run is not over. It touches `marker` before each step, and makes each take so many seconds more.
    """
    paced = f"time.sleep({pause})"
    marked = f"pathlib.Path({str(marker)!r}).touch(); {paced}" if marker else paced
    waits = f"while self.global_step == {step - 1} and not interruption.requested(): time.sleep(0.02)"
    return before_hook("training_step", waits) + before_hook("training_step", marked)


def parts(runs: Path) -> list[str]:
    """Files that were left half written."""
    return [name for _, _, files in os.walk(runs) for name in files if name.endswith(".part")]
