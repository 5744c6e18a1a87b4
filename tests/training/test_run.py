"""Runs for real, on the bundled images: deterministic, resumed after a real kill, never trained twice."""

import json
import sys
from contextlib import suppress
from importlib.metadata import version

import pytest
import torch

from convrepro.config.compose import compose_config
from convrepro.config.scientific import scientific
from convrepro.errors import ConvReproError
from convrepro.runs import environment
from convrepro.runs.identity import Identity, named
from convrepro.runs.protocol import Protocol
from convrepro.training.module import Classifier
from convrepro.training.run import run
from convrepro.training.runner import run_jobs
from support import lab_table
from support.patience import wait
from support.small_runs import MNIST_FC, before_step, ended, science, start, train


def test_a_run_is_deterministic_under_its_seed_and_differs_between_seeds(tmp_path):
    words = [*MNIST_FC, "recipe.epochs=1"]
    first, second = train(words, tmp_path / "a"), train(words, tmp_path / "b")
    assert science(first) == science(second)
    assert science(train([*words, "seed=1"], tmp_path / "a")) != science(first)


def test_a_finished_run_is_not_trained_again(tmp_path):
    words = [*MNIST_FC, "recipe.epochs=1"]
    train(words, tmp_path)
    (path,) = tmp_path.rglob("result.json")
    before = path.stat().st_mtime_ns
    train(words, tmp_path)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "within_epoch",
    [pytest.param(False, marks=pytest.mark.exhaustive, id="between epochs"), pytest.param(True, id="within an epoch")],
)
def test_a_killed_run_resumes_to_the_result_of_an_unbroken_one(tmp_path, within_epoch):
    """Dropout, shuffling and RAdam's state all have to be as they were; with weight decay, of two groups."""
    words = ["model=deepshift_mnist_fc", "conv=shift", "conv.variant=ps", "recipe=deepshift_mnist_v5"]
    words += ["recipe.optimizer.name=radam", "recipe.epochs=4", "recipe.batch_size=16", "trainer=cpu", "logger=none"]
    words += ["budget.train_examples=1000", "budget.test_examples=200"]
    words += ["trainer.checkpoint_steps=25", "recipe.optimizer.weight_decay=1e-3"] * within_epoch
    unbroken = train(words, tmp_path / "unbroken")

    process = start(words, tmp_path / "killed", first=before_step(4 * 63 - 1))
    wait(lambda: list((tmp_path / "killed").rglob("last.ckpt")), process)
    process.kill()
    ended(process)
    (checkpoint,) = (tmp_path / "killed").rglob("last.ckpt")
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 4 * 63

    resumed = train(words, tmp_path / "killed")
    assert science(resumed) == science(unbroken)


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(tmp_path):
    """As when a file of `conf` was changed after it: the overrides are the same."""
    (job, *_) = lab_table.jobs(lab_table.load(tmp_path / "tables"), tmp_path / "runs", budget="smoke")
    words = [*job.overrides, "trainer=cpu", "logger=none"]
    run(compose_config(words), words, table=job.table)
    (record,) = tmp_path.rglob("result.json")
    result = json.loads(record.read_text())
    result["config"]["recipe"]["optimizer"]["lr"] = 0.5
    record.write_text(json.dumps(result))
    with pytest.raises(ConvReproError, match=r"another protocol: recipe\.optimizer\.lr was 0\.5 and is"):
        run(compose_config(words), words, table=job.table)


def test_the_commit_on_record_is_that_of_the_code_that_ran(tmp_path, monkeypatch):
    """Somebody commits while it trains."""
    started = environment.commit()

    def begin(self) -> None:
        monkeypatch.setattr(environment, "commit", lambda: ("f" * 40, True))

    monkeypatch.setattr(Classifier, "on_train_epoch_start", begin)
    record = train([*MNIST_FC, "recipe.epochs=1"], tmp_path)["environment"]
    assert (record["commit"], record["dirty"]) == started


@pytest.mark.parametrize(("devices", "images"), [("3", 32), ("[0,1]", 48)])
def test_the_batch_is_divided_among_the_devices(devices, images):
    cfg = compose_config(["recipe.batch_size=96", f"trainer.devices={devices}"])
    assert cfg.loader_batch == images


@pytest.mark.parametrize("devices", ["auto", "-1", "0", "'2'"])
def test_an_open_number_of_devices_is_refused(devices):
    with pytest.raises(ConvReproError, match=r"trainer\.devices=.* must be (a whole number|at least 1) or a list"):
        compose_config([f"trainer.devices={devices}"])


def test_a_table_is_not_run_in_several_processes_at_once(tmp_path):
    jobs = lab_table.jobs(lab_table.load(tmp_path), tmp_path / "runs", extra=("trainer=ddp", "logger=none"))
    with pytest.raises(ConvReproError, match="asks for 2 processes, but `run` trains a table in one"):
        run_jobs(jobs, print)


@pytest.mark.parametrize("folder", ["jürgen", "it's", "two words, and {more}"])
def test_a_folder_of_any_name_can_hold_runs(tmp_path, folder):
    (job, *_) = lab_table.jobs(lab_table.load(tmp_path), tmp_path / folder)
    assert compose_config(job.overrides).runs == str(tmp_path / folder)


def test_the_record_names_everything_that_a_reader_needs(tmp_path):
    result = train([*MNIST_FC, "recipe.epochs=1"], tmp_path)
    (path,) = tmp_path.rglob("result.json")
    assert json.loads(path.read_text()) == result
    assert result["static"]["params"] == 669_706
    assert result["environment"]["versions"]["torch"] == version("torch")
    assert result["overrides"] == [*named(MNIST_FC), "recipe.epochs=1"]
    assert set(result["metrics"]["last"]) == {"epoch", "top1", "top5", "loss"}


@pytest.mark.parametrize("words", [["trainer.deterministic=true"], ["recipe.optimizer.lr=1000"]], ids=["ends", "fails"])
def test_a_run_leaves_the_settings_of_its_process_as_they_were(tmp_path, words):
    """Or whoever calls it from Python loses small numbers, or an operation without a deterministic form."""
    with suppress(ConvReproError):
        train([*MNIST_FC, "recipe.epochs=1", *words], tmp_path)
    assert sys.float_info.min / 2 > 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_loss_falls_and_accuracy_is_far_above_chance(tmp_path):
    words = ["model=deepshift_mnist_conv", "recipe=deepshift_mnist_v5", "recipe.optimizer.lr=0.05", "recipe.epochs=2"]
    result = train([*words, "trainer=cpu", "logger=none"], tmp_path)
    losses = [line["train/loss"] for line in result["history"]]
    assert losses[1] < losses[0]
    assert result["metrics"]["last"]["top1"] > 60


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(tmp_path):
    with pytest.raises(ConvReproError, match=r"diverged.*step \d \(epoch 1\) .*recipe.optimizer.lr"):
        train([*MNIST_FC, "recipe.epochs=1", "recipe.optimizer.lr=1000"], tmp_path)
    assert not list(tmp_path.rglob("result.json"))


def test_weights_carry_over_and_are_evaluated_without_training(tmp_path):
    original = train([*MNIST_FC, "recipe.epochs=2"], tmp_path)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    told: list[str] = []
    again = train([*MNIST_FC, f"weights={checkpoint}", "train=false"], tmp_path / "again", told.append)
    assert f"weights={checkpoint}: took 'state_dict', prefix 'network.'; loaded as they are" in told
    assert again["metrics"]["last"]["top1"] == original["metrics"]["last"]["top1"]
    converted = train([*MNIST_FC, f"weights={checkpoint}", "train=false", "conv=shift"], tmp_path / "converted")
    assert converted["static"]["multiplications"] == 0
    assert abs(converted["metrics"]["last"]["top1"] - original["metrics"]["last"]["top1"]) < 20


def test_the_schedule_shrinks_with_the_budget(tmp_path):
    words = [*MNIST_FC, "recipe.epochs=8", "budget.epochs=4", "recipe.schedule.name=MultiStepLR"]
    words += ["+recipe.schedule.args={milestones: [4, 6], gamma: 0.1}", "recipe.optimizer.lr=0.1"]
    rates = [line["lr"] for line in train(words, tmp_path)["history"]]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(("name", "arguments"), [("cosine", "{}"), ("ExponentialLR", "{gamma: 0.5}")])
def test_timm_and_torch_schedules_change_the_rate_once_an_epoch(tmp_path, name, arguments):
    words = [*MNIST_FC, "recipe.epochs=3", f"recipe.schedule.name={name}", f"+recipe.schedule.args={arguments}"]
    rates = [line["lr"] for line in train(words, tmp_path)["history"]]
    assert rates[0] == pytest.approx(0.01)
    assert rates[0] > rates[1] > rates[2] > 0


@pytest.mark.parametrize("optimizer", ["radam", "lookahead_radam", "adamw", "rmsprop"])
def test_optimizers_by_name_lower_the_loss(tmp_path, optimizer):
    words = [*MNIST_FC, "recipe.epochs=3", f"recipe.optimizer.name={optimizer}", "recipe.optimizer.lr=0.001"]
    losses = [line["train/loss"] for line in train([*words, "recipe.optimizer.args=null"], tmp_path)["history"]]
    assert losses[-1] < losses[0]


def test_a_protocol_ignores_how_a_run_is_executed_and_spelled():
    def digest(*overrides: str) -> str:
        return Protocol(scientific(compose_config(["conv=hetconv", *overrides]))).digest

    own = digest()
    same = ["conv.p=4", "++conv.p=4", "hydra.verbose=true", "trainer.num_workers=0", "seed=1", "data_root=x"]
    assert {digest(words) for words in (*same, "logger=none", "recipe.optimizer.lr=5e-2", "model_args={}")} == {own}
    others = ["conv.p=2", "trainer.precision=bf16-mixed", "recipe.epochs=31", "model=resnet34", "train=false"]
    assert len({own, *map(digest, others)}) == 1 + len(others)
    assert named(["conv=hetconv", "trainer=gpu", "+logger.x=1", "seed=1", "data_root=x"]) == ["conv=hetconv"]
    one, two = Identity("t", "r", 0, "paper"), Identity("t", "r", 1, "paper")
    assert one.run_id != two.run_id
    assert one.run_id == Identity("t", "r", 0, "paper").run_id


def test_a_checkpoint_is_not_evaluated_with_other_knobs_than_it_was_trained_with(tmp_path):
    shifted = [*MNIST_FC, "conv=shift", "recipe.epochs=1"]
    train(shifted, tmp_path)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    for changed, words in (
        (["conv=shift", "conv.bits=3"], "conv.bits=paper, but conv.bits=3"),
        (["conv=standard"], "conv.name=shift, but conv.name=standard"),
    ):
        with pytest.raises(ConvReproError, match=words):
            train([*MNIST_FC, *changed, f"weights={checkpoint}", "train=false"], tmp_path / "again")


@pytest.mark.parametrize("harm", ["truncated", "foreign"])
def test_an_unfit_checkpoint_in_the_run_folder_is_named_and_not_overwritten(tmp_path, harm):
    words = [*MNIST_FC, "recipe.epochs=1"]
    train(words, tmp_path)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    (checkpoint.parent / "result.json").unlink()
    if harm == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    else:
        saved = torch.load(checkpoint, weights_only=True)
        saved["settings"]["config"]["recipe"]["optimizer"]["lr"] = 0.5
        torch.save(saved, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ConvReproError, match=r"last\.ckpt (is of a run|cannot be resumed from)"):
        train(words, tmp_path)
    assert checkpoint.read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_one_sentence(tmp_path):
    with pytest.raises(ConvReproError, match=r"trainer: accelerator=gpu, .*does not fit this machine"):
        train(["model=deepshift_mnist_fc", "trainer=gpu", "logger=none"], tmp_path)


def test_several_nodes_without_a_launcher_are_one_sentence(tmp_path):
    words = ["model=deepshift_mnist_fc", "trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "logger=none"]
    with pytest.raises(ConvReproError, match=r"trainer\.num_nodes=2 needs processes on each node"):
        train(words, tmp_path)


def test_a_run_of_one_device_ignores_the_tasks_of_its_shell(tmp_path, monkeypatch):
    """As in `salloc --ntasks=4`, where somebody tries one run."""
    shell = {"JOB_ID": "7", "NTASKS": "4", "NTASKS_PER_NODE": "4", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in (shell | {"JOB_NAME": "try", "NNODES": "1", "NODELIST": "n1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert train([*MNIST_FC, "recipe.epochs=1"], tmp_path)["status"] == "done"
