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
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from convrepro.config.compose import check_overrides, settle
from convrepro.config.paths import CONF
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
    check_overrides(overrides)
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
            batches = hydra.multirun(config_name="train", task_function=_member, overrides=[*defaults, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise ConvReproError(" ".join(str(error).split())) from error
        except Exception as error:
            if not type(error).__module__.startswith("submitit."):
                raise
            raise ConvReproError(f"a job of the sweep left no result; the others go on. {error}") from error
    return _report([member for batch in batches for member in batch])


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


def _member(cfg: DictConfig) -> dict[str, Any]:
    """One run of the sweep: {"top1": percent} or {"error": sentence}.

    A Slurm job whose run failed ends with 1 once its result is written: Hydra would let it end as a success.
    """
    failed: list[str] = []
    if HydraConfig.get().runtime.choices["hydra/launcher"] == SLURM:
        atexit.register(_end, failed)  # before what training registers, so as to be the last
    from convrepro.training.run import run

    try:
        settle(cfg)
        result = run(cfg, list(HydraConfig.get().overrides.task))
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
        words, outcome = " ".join(member.overrides), member.return_value
        if "error" in outcome:
            failures += 1
            print(f"failed: {words}: {outcome['error']}", file=sys.stderr)
        else:
            print(f"done: {words}: top-1 {outcome['top1']:.2f} %")
    return 1 if failures else 0
