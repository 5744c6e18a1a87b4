"""W&B: who a run is there and what is sent of it. W&B is a view; a failure of it never stops a training.

A run keeps its id over requeues. Each epoch is logged once, in order, on one step axis (`trainer/global_step`): an
attempt that continues a run asks what is there, leaves that out, and adds what an earlier one could not send. One that
was killed could not, nor one whose whole job got a SIGTERM, for that ends W&B's own process at once. No secret is sent:
not in the configuration, and not in what W&B's client finds out about the machine.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import wandb

from convrepro.config.secrets import is_secret
from convrepro.errors import Interrupted
from convrepro.runs.environment import commit
from convrepro.runs.identity import Identity
from convrepro.runs.result import LAST
from convrepro.runs.summary import so_far, summary
from convrepro.tracking.offline import logged_epochs

STEP = "trainer/global_step"
#: What is logged of each epoch; the epoch and the step beside it.
LOGGED = ("train/loss", "val/loss", "val/top1", "val/top5", "lr")
#: Characters that W&B takes in a tag.
TAG = 64


def offline_without_key(mode: str) -> str:
    """The mode that `auto` stands for: WANDB_MODE where set, online with an API key at hand, else offline."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    with hidden_secrets():
        return "online" if wandb.login(prompt=False, verify=False) else "offline"


def never_raises(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn whatever `method` raises into one warning a run; the training goes on without W&B."""

    @wraps(method)
    def guarded(self: "RunLogger", *args: Any, **kwargs: Any) -> Any:
        if self.broken:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.broken = error
            with suppress(Exception):
                self.run.finish(exit_code=1)
            with suppress(Exception):
                wandb.teardown(exit_code=1)
            warnings.warn(
                f"W&B is left out of this run from here on: {error}; `convrepro sync` sends what it lacks", stacklevel=2
            )
            return None

    return guarded


class RunLogger:
    """One open W&B run. It gives up quietly, and `broken` says why: result.json is the record.

    `last` is the last epoch that W&B has; `checkpoint`, where given, goes there as an artifact when the run is done.
    """

    def __init__(self, run: wandb.Run, last: int, checkpoint: Path | None = None) -> None:
        self.run = run
        self.last = last
        self.checkpoint = checkpoint
        self.broken: Exception | None = None
        self._begun = False

    @never_raises
    def catch_up(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Log those epochs of `history` that W&B does not have, and what is last and best by now."""
        if not self._begun and self.last > len(history) + 1:
            warnings.warn(
                f"W&B has epochs up to {self.last} of this run, from an earlier training of it; they stay as they are, "
                "and those behind them are added. Another project (logger.project=NAME) has it whole",
                stacklevel=3,
            )
        self._begun = True
        new = [line for line in history if line["epoch"] > self.last]
        for line in new:
            values = {"epoch": line["epoch"], STEP: line.get("step"), **{key: line.get(key) for key in LOGGED}}
            self.run.log({key: value for key, value in values.items() if value is not None})
            self.last = line["epoch"]
        if new:
            self.run.summary.update(so_far(history))

    @never_raises
    def finish(self, final: Mapping[str, Any]) -> None:
        """Write the final summary and close the run."""
        self.run.summary.update(dict(final))
        if self.checkpoint and self.checkpoint.exists():
            artifact = wandb.Artifact(f"model-{self.run.id}", type="model", metadata=dict(final))
            artifact.add_file(str(self.checkpoint), policy="immutable", skip_cache=True)
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=0)

    @never_raises
    def fail(self, error: BaseException) -> None:
        """Close the run as failed, or as preempted where `error` is an interruption and the run goes on later.

        To W&B a run is preempted that was marked so and then exits with another code than 0.
        """
        code = 1
        if isinstance(error, Interrupted):
            self.run.mark_preempting()
            code = 128 + (signal.SIGUSR1 if error.requeue else signal.SIGTERM)
        self.run.finish(exit_code=code)


def build_logger(
    cfg: Mapping[str, Any], identity: Identity, folder: Path, config: Mapping[str, Any], static: Mapping[str, int]
) -> RunLogger | None:
    """The run's logger, opened, or None for `logger=none`; where W&B cannot be opened the run goes on without it.

    cfg: the `logger` group's choice; config: the whole resolved configuration; static: the run's static columns.
    """
    if cfg["name"] == "none":
        return None
    began = {**{key: config.get(key) for key in ("table", "row", "seed")}, "static": static}
    try:
        logger = open_run(cfg, identity, folder, described(identity, config, *commit()))
        logger.run.summary.update(summary(began))
        if logger.run.url:
            print(f"W&B: {logger.run.url}", file=sys.stderr)
    except Exception as error:
        warnings.warn(f"W&B is left out of this run: {error}", stacklevel=2)
        return None
    return logger


def replay(cfg: Mapping[str, Any], identity: Identity, folder: Path, result: Mapping[str, Any]) -> None:
    """Send what W&B lacks of a finished run, from its result, so that it is as if sent in training.

    `folder` is for the client's own files. Raises what W&B's client does where it cannot send.
    """
    found = result.get("environment") or {}
    about = described(identity, result["config"], found.get("commit"), found.get("dirty"))
    logger = _logger(cfg, folder, _start(cfg, folder, about, "online"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        logger.catch_up(result["history"])
        logger.finish(summary(result))
    if logger.broken:
        raise logger.broken


def described(
    identity: Identity, config: Mapping[str, Any], revision: str | None, dirty: bool | None
) -> dict[str, Any]:
    """Who the run is, as arguments of `wandb.init`: group is the table, job type `train` or `eval`.

    The configuration is the resolved tree without secrets; beside it, to group and filter by, stand the scalars
    `conv_name`, `data_name`, `budget_name`, `table`, `row` and `commit`.
    """
    scalars = {f"{group}_name": config[group]["name"] for group in ("conv", "data", "budget")}
    scalars |= {"table": identity.table, "row": identity.row, "seed": identity.seed, "commit": revision, "dirty": dirty}
    tags = [config["model"], *(scalars[f"{group}_name"] for group in ("conv", "data", "budget"))]
    return {
        "name": identity.name,
        "id": identity.run_id,
        "group": identity.table,
        "job_type": "train" if config["train"] else "eval",
        "tags": list(dict.fromkeys(tag[:TAG] for tag in [*tags, *([revision[:8]] if revision else [])])),
        "config": without_secrets({**config, **scalars}),
    }


def without_secrets(tree: Any) -> Any:
    """`tree` without the words under a key that looks like a secret's, and without any word that holds a secret."""
    values = [value for name, value in os.environ.items() if is_secret(name) and len(value) >= 8]

    def harmless(key: str, value: Any) -> bool:
        return not isinstance(value, str) or not (is_secret(str(key)) or any(secret in value for secret in values))

    if isinstance(tree, Mapping):
        return {key: without_secrets(value) for key, value in tree.items() if harmless(key, value)}
    if isinstance(tree, list | tuple):
        return [without_secrets(value) for value in tree if harmless("", value)]
    return tree


def open_run(cfg: Mapping[str, Any], identity: Identity, folder: Path, about: Mapping[str, Any]) -> RunLogger:
    """Open the run that `about` describes, to be continued where it is there already.

    A server that does not answer in `cfg["timeout"]` seconds has the run recorded offline, for `convrepro sync`.
    """
    mode = offline_without_key(cfg["mode"])
    try:
        return _logger(cfg, folder, _start(cfg, folder, about, mode))
    except Exception as error:
        if mode != "online":
            raise
        sync = f"`convrepro sync {identity.table}` sends it"
        warnings.warn(f"W&B cannot be used now ({error}); the run is recorded offline, and {sync}", stacklevel=3)
        with suppress(Exception):
            wandb.teardown()
        return _logger(cfg, folder, _start(cfg, folder, about, "offline"))


def _logger(cfg: Mapping[str, Any], folder: Path, run: wandb.Run) -> RunLogger:
    run.define_metric("*", step_metric=STEP, step_sync=False)  # no step is made up where none is known
    there = logged_epochs(folder) if run.offline else [run.summary.get("epoch", -1)]
    return RunLogger(run, max(there, default=-1), folder / LAST if cfg["checkpoints"] else None)


def _start(cfg: Mapping[str, Any], folder: Path, about: Mapping[str, Any], mode: str) -> wandb.Run:
    settings = wandb.Settings(
        reinit="create_new",  # and never the run that another part of the process left open
        silent=True,  # else it also asks the server for the name of the user, however long that takes
        console="off",
        disable_git=True,  # it sends the address of the repository and a patch; the commit is in the configuration
        disable_code=True,
        x_disable_meta=any(is_secret(word) for word in sys.argv[1:]),  # it holds the command line
        init_timeout=cfg["timeout"],
        finish_timeout=cfg["timeout"],
        finish_timeout_raises=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with hidden_secrets():
        return wandb.init(
            project=cfg["project"],
            entity=cfg["entity"],
            dir=str(folder),
            mode=mode,
            resume="allow",
            settings=settings,
            **about,
        )


@contextmanager
def hidden_secrets() -> Iterator[None]:
    """Around what may start W&B's background process: it gets no secret of other programs, and reports no errors.

    It would send all of SLURM_*, with SLURM_JWT among them; for its error reports a process waits when it ends.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    hidden = {name: value for name, value in os.environ.items() if is_secret(name) and not name.startswith("WANDB_")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
