"""`convrepro train -m`: Hydra's own multirun, with any launcher, over comma-separated overrides."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from convrepro.config.compose import check_overrides, compose_config
from convrepro.config.overrides import key_of, parse
from convrepro.config.paths import CONF
from convrepro.config.plugins import search_path
from convrepro.config.scientific import scientific
from convrepro.errors import ConvReproError, Interrupted
from convrepro.runs import interruption

SLURM = "submitit_slurm"
#: Of hydra.launcher, where the command line does not say otherwise. Slurm warns a run before its time limit, and it is
#: queued again to go on; submitit takes a preemption in the last fifth or 10 minutes of it for such a time-out too.
SLURM_DEFAULTS = {"timeout_min": 1440, "max_num_timeout": 100, "stderr_to_stdout": True, "name": "convrepro"}


def sweep(overrides: Sequence[str]) -> int:
    """Run every combination of the comma-separated values in `overrides`; returns 1 where one failed, else 0.

    A member that fails does not stop the others. Raises ConvReproError for overrides that do not compose or would put a
    secret on record, before anything runs, and for what the chosen launcher lacks here.
    """
    overrides = check_overrides(overrides, sweep=True)
    _check_members(overrides)
    defaults = []
    if f"hydra/launcher={SLURM}" in overrides:
        _check_slurm()
        defaults = [f"hydra.launcher.{key}={value}" for key, value in SLURM_DEFAULTS.items()]
    else:
        interruption.listen()
    GlobalHydra.instance().clear()
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
    return _report([member for batch in batches for member in batch])


def _check_members(overrides: Sequence[str]) -> None:
    """Compose every member of a sweep over listed values.

    Raises ConvReproError for a member that does not compose, and for two that are one run, as those of a sweep over an
    execution setting are. Members of a sweeper that chooses values as it goes are not known yet.
    """
    if any(key_of(text) == "hydra/sweeper" for text in overrides):
        return
    listed = [parse(text) for text in overrides if not key_of(text).startswith("hydra")]
    members: dict[str, list[str]] = {}
    for batch in BasicSweeper.split_arguments(listed, max_batch_size=None):
        for member in batch:
            try:
                cfg = compose_config(member)
            except ConvReproError as error:
                raise ConvReproError(f"{' '.join(member)}: {error}") from error
            what = repr((scientific(cfg), cfg.seed, cfg.weights, cfg.data.root))
            if what in members:
                swept = [text for text in member if text not in members[what]]
                raise ConvReproError(
                    f"{' '.join(swept) or ' '.join(member)} is the same run as another of the sweep, for it does not "
                    "determine a result; sweep over settings that do"
                )
            members[what] = list(member)


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


def _member(_: DictConfig) -> dict[str, Any]:
    """One run of the sweep: {"top1": percent} or {"error": sentence}.

    A Slurm job whose run failed ends with 1 once its result is written: Hydra would let it end as a success.
    """
    failed: list[str] = []
    if HydraConfig.get().runtime.choices["hydra/launcher"] == SLURM:
        atexit.register(_end, failed)  # before what training registers, so as to be the last
    from convrepro.training.run import run

    overrides = list(HydraConfig.get().overrides.task)
    try:
        result = run(compose_config(overrides), overrides)
        return {"top1": result["metrics"]["last"]["top1"]}
    except Interrupted as error:
        print(f"convrepro: {error}", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except ConvReproError as error:
        failed.append(str(error))
    except Exception as error:
        traceback.print_exc()
        failed.append(f"{type(error).__name__}: {error}")
    print(f"convrepro: {failed[0]}", file=sys.stderr)
    return {"error": failed[0]}


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
