"""`convrepro train -m`: Hydra's own multirun, with any launcher, over comma-separated overrides."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from convrepro.config.compose import check_overrides, compose_config
from convrepro.config.overrides import key_of, parse
from convrepro.config.paths import CONF
from convrepro.config.plugins import search_path, tell_hydra
from convrepro.config.scientific import scientific
from convrepro.errors import ConvReproError, Interrupted
from convrepro.runs import interruption

SLURM, SWEEPER = "submitit_slurm", "hydra/sweeper"
OPTUNA_DEFAULT = "hydra.sweeper.direction=maximize"
#: The file in the sweep's folder in which a sweeper that optimises writes what it found best.
BEST = "optimization_results.yaml"
#: Of hydra.launcher, where the command line does not say otherwise. Slurm warns a run before its time limit, and it is
#: queued again to go on; submitit takes a preemption in the last fifth or 10 minutes of it for such a time-out too.
SLURM_DEFAULTS = {"timeout_min": 1440, "max_num_timeout": 100, "stderr_to_stdout": True, "name": "convrepro"}


def sweep(overrides: Sequence[str]) -> int:
    """Run every combination of the comma-separated values in `overrides`; returns 1 where one failed, else 0.

    A member that fails does not stop the others. Raises ConvReproError for overrides that do not compose or would put a
    secret on record, before anything runs, and for what the chosen launcher lacks here.
    """
    overrides = check_overrides(overrides, sweep=True)
    sweeper = next((text for text in overrides if key_of(text) == SWEEPER), None)
    defaults = []
    if sweeper:
        _check_sweeper(sweeper)
        defaults = [OPTUNA_DEFAULT] if sweeper == f"{SWEEPER}=optuna" else []
    else:
        _check_members(overrides)
    if f"hydra/launcher={SLURM}" in overrides:
        _check_slurm()
        defaults += [f"hydra.launcher.{key}={value}" for key, value in SLURM_DEFAULTS.items()]
    else:
        interruption.listen()
    GlobalHydra.instance().clear()
    tell_hydra()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name="convrepro"):
        try:
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            texts = [*search_path(), *defaults, *overrides]
            batches = hydra.multirun(config_name="train", task_function=_member, overrides=texts)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConvReproError(" ".join(str(error).split())) from error
        except Exception as error:
            if not type(error).__module__.startswith("submitit."):
                raise
            raise ConvReproError(f"a job of the sweep left no result; the others go on. {error}") from error
    if sweeper:
        return _report_best(Path(compose_config(_unswept(overrides)).runs) / "sweep" / BEST)
    return _report([member for batch in batches for member in batch])


def _unswept(overrides: Sequence[str]) -> list[str]:
    """The overrides that have one value, and are none of Hydra's own."""
    return [text for text in overrides if not key_of(text).startswith("hydra") and not parse(text).is_sweep_override()]


def _check_sweeper(sweeper: str) -> None:
    """Raises ConvReproError where the plugin of a sweeper is not installed."""
    name = sweeper.partition("=")[2]
    try:
        found = find_spec(f"hydra_plugins.hydra_{name}_sweeper")
    except ModuleNotFoundError:
        found = None
    if found is None and name != "basic":
        extra = "pip install 'convrepro[optuna]'" if name == "optuna" else "install the plugin of Hydra that has it"
        raise ConvReproError(f"{sweeper} is not installed; {extra}")


def _report_best(path: Path) -> int:
    """Prints what a sweeper that optimises has found best; 1 where it has written nothing."""
    if not path.exists():
        print(f"convrepro: the sweeper has written no {path}", file=sys.stderr)
        return 1
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
    print(f"best: {words}: top-1 {found['best_value']:.2f} %")
    print(path)
    return 0


def members(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each member of a sweep over listed values.

    Raises ConvReproError for a sweeper that chooses values as it goes: its members are not known yet.
    """
    if sweeper := next((text for text in overrides if key_of(text) == SWEEPER), None):
        raise ConvReproError(f"{sweeper} chooses the values of a run after the run before; leave out -m or the sweeper")
    texts = [text for text in check_overrides(overrides, sweep=True) if not key_of(text).startswith("hydra")]
    tell_hydra()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        parser = OverridesParser.create(config_loader=hydra.config_loader)  # it knows what `conv=glob(*)` stands for
        batches = BasicSweeper.split_arguments(parser.parse_overrides(texts), max_batch_size=None)
        return [list(member) for batch in batches for member in batch]


def _check_members(overrides: Sequence[str]) -> None:
    """Compose every member of a sweep over listed values.

    Raises ConvReproError for a member that does not compose, and for two that are one run, as those of a sweep over an
    execution setting are.
    """
    known: dict[str, list[str]] = {}
    for member in members(overrides):
        try:
            cfg = compose_config(member)
        except ConvReproError as error:
            raise ConvReproError(f"{' '.join(member)}: {error}") from error
        what = repr((scientific(cfg), cfg.seed, cfg.weights, cfg.data.root))
        if what in known:
            swept = [text for text in member if text not in known[what]]
            raise ConvReproError(
                f"{' '.join(swept) or ' '.join(member)} is the same run as another of the sweep, for it does not "
                "determine a result; sweep over settings that do"
            )
        known[what] = member


def _check_slurm() -> None:
    """Raises ConvReproError where jobs cannot be submitted; tells what goes wrong where Slurm keeps no accounts."""
    try:
        plugin = find_spec("hydra_plugins.hydra_submitit_launcher")
    except ModuleNotFoundError:
        plugin = None
    if plugin is None:
        raise ConvReproError(f"hydra/launcher={SLURM} is not installed: pip install 'convrepro[slurm]'")
    if not shutil.which("sbatch"):
        raise ConvReproError(f"hydra/launcher={SLURM} needs Slurm, but there is no sbatch here")
    print("submits a job array of Slurm and waits for all of it; an interrupt leaves the jobs running", flush=True)
    accounts = subprocess.run(["sacct", "--noheader", "--allocations"], capture_output=True)
    if accounts.returncode:
        print(
            "convrepro: sacct does not work on this cluster, so that a run whose job is killed (memory, time limit, "
            "scancel) goes unnoticed and this command waits for ever; `convrepro submit` does without sacct",
            file=sys.stderr,
            flush=True,
        )


def _member(_: DictConfig) -> dict[str, Any] | float:
    """One run of the sweep: {"top1": percent} or {"error": sentence}; for a sweeper that optimises, the percentage.

    A Slurm job whose run failed ends with 1 once its result is written: Hydra would let it end as a success.
    """
    failed: list[str] = []
    queue_again: Callable[[], None] | None = None
    if HydraConfig.get().runtime.choices["hydra/launcher"] == SLURM:
        atexit.register(_end, failed)  # before what training registers, so as to be the last
        queue_again = _defer_submitit()
    from convrepro.training.run import run

    overrides = list(HydraConfig.get().overrides.task)
    optimised = HydraConfig.get().runtime.choices["hydra/sweeper"] != "basic"
    try:
        result = run(compose_config(overrides), overrides)
        top1 = result["metrics"]["last"]["top1"]
        return top1 if optimised else {"top1": top1}
    except Interrupted as error:
        print(f"convrepro: {error}", file=sys.stderr)
        try:
            if error.requeue and queue_again:
                queue_again()
        except Exception as refused:
            failed.append(str(refused))
        else:
            sys.exit(128 + signal.SIGTERM)
    except ConvReproError as error:
        failed.append(str(error))
    except Exception as error:
        traceback.print_exc()
        failed.append(f"{type(error).__name__}: {error}")
    print(f"convrepro: {failed[0]}", file=sys.stderr)
    if optimised:
        raise ConvReproError(failed[0])  # the sweeper counts it as a failed trial
    return {"error": failed[0]}


def _defer_submitit() -> Callable[[], None]:
    """Note the signal by which Slurm announces a time limit until the run has saved; returns what submitit does then.

    submitit queues the job again and raises SystemExit from the handler of the signal, wherever the run is: code that
    turns the exception into another one would let a run fail that goes on. What is returned raises SystemExit, or an
    exception that says why the job is not queued again.
    """
    number = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
    handler = signal.getsignal(number)
    assert callable(handler)
    interruption.listen(also=number)
    return lambda: handler(number, None)


def _end(failed: Sequence[str]) -> None:
    if failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _report(members: Sequence[JobReturn]) -> int:
    """Print how each member ended; 1 where one failed, else 0."""
    failures = 0
    for member in members:
        words, outcome = " ".join(member.overrides or ()), member.return_value
        if "error" in outcome:
            failures += 1
            print(f"failed: {words}: {outcome['error']}", file=sys.stderr)
        else:
            print(f"done: {words}: top-1 {outcome['top1']:.2f} %")
    return 1 if failures else 0
