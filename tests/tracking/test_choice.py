"""`logger=csv` and `logger=tensorboard`, and that W&B's client is not needed where it is not asked for."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError, Interrupted
from convrepro.runs import interruption
from convrepro.tracking.files import CSV, EVENTS
from convrepro.tracking.files import STEPS as STEPS_FILE
from convrepro.training.identity import identity_of, protocol_of
from support.command import Python
from support.small_runs import EPOCHS, STATEFUL, STEPS, train

RUN = [word for word in STATEFUL if word != "logger=none"]


def interrupted_once(logger: str, runs, *more: str) -> dict:
    """The result of a run that is interrupted after its first epoch and goes on."""
    words = [*RUN, f"logger={logger}", *more]
    with pytest.MonkeyPatch.context() as patch:

        def stop(line: str) -> None:
            if "epoch 1/" in line:
                patch.setattr(interruption, "_request", "stop")

        with pytest.raises(Interrupted):
            train(words, runs, stop)
    return train(words, runs)


def test_a_csv_file_has_each_epoch_once_though_the_run_was_interrupted(tmp_path):
    result = interrupted_once("csv", tmp_path)
    (path,) = tmp_path.rglob(CSV)
    rows = list(csv.DictReader(path.open()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
    for key in ("train/loss", "val/top1"):
        assert [float(row[key]) for row in rows] == [line[key] for line in result["history"]]


def test_csv_and_tensorboard_have_every_nth_step_once_where_asked_for(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = interrupted_once("csv", tmp_path / "csv", "logger.every_n_steps=10", "trainer.accumulate=2")
    (path,) = tmp_path.rglob(STEPS_FILE)
    rows = list(csv.DictReader(path.open()))
    assert [int(row["step"]) for row in rows] == list(range(10, EPOCHS * STEPS + 1, 10))
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert len(list(csv.DictReader(path.with_name(CSV).open()))) == EPOCHS

    interrupted_once("tensorboard", tmp_path / "events", "logger.every_n_steps=10", "trainer.accumulate=2")
    (folder,) = tmp_path.rglob(EVENTS)
    found = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in found.Scalars("step/loss")] == [int(row["step"]) for row in rows]
    assert [event.value for event in found.Scalars("step/loss")] == pytest.approx([float(row["loss"]) for row in rows])
    assert [event.value for event in found.Scalars("val/top1")] == pytest.approx(
        [line["val/top1"] for line in result["history"]]
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_losses_of_an_epochs_steps_have_its_training_loss_as_their_mean(tmp_path, accumulate):
    words = [*RUN, "logger=csv", "recipe.epochs=1", "logger.every_n_steps=1", f"trainer.accumulate={accumulate}"]
    result = train(words, tmp_path)
    (path,) = tmp_path.rglob(STEPS_FILE)
    losses = [float(row["loss"]) for row in csv.DictReader(path.open())]
    assert len(losses) == STEPS
    assert sum(losses) / STEPS == pytest.approx(result["history"][0]["train/loss"])


def test_logging_steps_is_no_other_run_and_off_by_default(tmp_path):
    words = [*RUN, "logger=csv"]
    plain, stepped = (compose_config([*words, *more]) for more in ((), ("logger.every_n_steps=5",)))
    assert protocol_of(plain).digest == protocol_of(stepped).digest
    assert identity_of(plain, words, protocol_of(plain)) == identity_of(
        stepped, [*words, "logger.every_n_steps=5"], protocol_of(stepped)
    )
    train([*words, "recipe.epochs=1"], tmp_path)
    assert not list(tmp_path.rglob(STEPS_FILE))
    said: list[str] = []
    train([*words, "recipe.epochs=1", "logger.every_n_steps=5"], tmp_path, said.append)
    assert "finished" in said[0]


def test_steps_that_nobody_logs_are_refused():
    with pytest.raises(ConvReproError, match=r"logger.every_n_steps=5.* has no effect with logger=none"):
        compose_config(["logger=none", "logger.every_n_steps=5"])


def test_tensorboard_reads_each_epoch_once_though_the_run_was_interrupted(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = interrupted_once("tensorboard", tmp_path)
    (folder,) = tmp_path.rglob(EVENTS)
    found = EventAccumulator(str(folder)).Reload()
    for key in ("train/loss", "val/top1"):
        assert [event.value for event in found.Scalars(key)] == pytest.approx([h[key] for h in result["history"]])
        assert [event.step for event in found.Scalars(key)] == [line["step"] for line in result["history"]]
    assert [event.value for event in found.Scalars("epoch")] == list(range(1, EPOCHS + 1))
    assert found.Scalars("final/last/top1")[-1].value == pytest.approx(result["metrics"]["last"]["top1"])


def test_without_tensorboard_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConvReproError, match=r"pip install 'convrepro\[tensorboard\]', or take logger=csv"):
        train([*RUN, "logger=tensorboard"], tmp_path)


def without(packages: Sequence[str], words: Sequence[str], folder: Path) -> tuple[int, str]:
    """The exit code of a command and what it says where `packages` are not installed."""
    code = (
        "import sys\n"
        f"for name in [n for n in sys.modules if n.split('.')[0] in {packages!r}]: del sys.modules[name]\n"
        f"sys.modules.update(dict.fromkeys({packages!r}))\n"
        "from convrepro.cli.main import main\nmain(sys.argv[1:])"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with Python(["-c", code, *words], cwd=folder, **pipes) as process:
        out, _ = process.communicate(timeout=300)
    return process.returncode, out


@pytest.mark.parametrize(
    "words",
    [
        ["count", "model=deepshift_mnist_conv", "data=mnist"],
        ["train", *STATEFUL],
        pytest.param(["show", "hetconv/table1"], marks=pytest.mark.exhaustive),
        pytest.param(["list"], marks=pytest.mark.exhaustive),
    ],
    ids=lambda words: words[0],
)
def test_commands_work_where_wandb_and_what_draws_or_exports_is_not_installed(words, tmp_path):
    packages = ["wandb", "wandb_workspaces", "matplotlib", "onnx", "onnxscript", "onnxruntime", "tensorboard"]
    code, said = without(packages, words, tmp_path)
    assert code == 0, said


@pytest.mark.parametrize(
    ("package", "words", "expected"),
    [
        ("wandb", ["train", *RUN, "logger=wandb"], "pip install wandb`, or take logger=csv"),
        ("wandb", ["sync", "hetconv/table1"], "sync needs wandb; `pip install wandb`"),
        ("matplotlib", ["report", "hetconv/table1", "--plots"], "report needs matplotlib; `pip install matplotlib`"),
        ("matplotlib", ["report", "--html"], "report needs matplotlib; `pip install matplotlib`"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_what_needs_a_package_that_is_not_installed_says_so_in_a_sentence(package, words, expected, tmp_path):
    code, said = without([package], words, tmp_path)
    assert code != 0
    assert expected in said
    assert "Traceback" not in said
