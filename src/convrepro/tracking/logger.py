"""Logs a run to W&B. W&B is a view of the record; a failure of W&B never stops a training.

A run keeps its W&B id over requeues. Each epoch is logged once, in order, on one step axis (`trainer/global_step`),
and so is every n-th step where asked for; epochs count from 1, as in the terminal. An attempt that continues a run asks
W&B which it has, leaves those out, and adds those that an earlier attempt could not send. An attempt that was killed
could not send its last ones, nor could one whose whole job got a SIGTERM, because SIGTERM ends W&B's own process at
once. No secret is sent: neither in the configuration nor in what W&B's client finds out about the machine.

Under an agent of a W&B sweep the client itself takes the id and the project that the sweep gave the run, not ours.

The server has `logger.timeout` seconds when a run starts and again when it ends; see `service` for how that is kept.
"""

import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Literal, cast

import wandb

from convrepro.config.plan import made_by
from convrepro.config.secrets import confidential_variables, is_secret, secret_in
from convrepro.errors import ConvReproError, Interrupted, visible
from convrepro.runs.environment import commit
from convrepro.runs.identity import Identity
from convrepro.runs.result import LAST
from convrepro.runs.summary import numbered, so_far, summary
from convrepro.tables import Table
from convrepro.tracking.files import LOGGED_STEP
from convrepro.tracking.offline import FIRST, STEP, epoch_in, logged, step_in
from convrepro.tracking.service import GRACE, Unanswered, answering, close

#: The values that are logged for each epoch, beside the epoch and the step.
LOGGED = ("train/loss", "val/loss", "val/top1", "val/top5", "lr")
#: Characters of the reason why a run failed, in its summary.
LONGEST = 500
#: The most characters that W&B accepts in a tag.
TAG = 64
#: W&B's own variable, by which runs of no table have a common group.
GROUP = "WANDB_RUN_GROUP"


def offline_without_key(mode: str) -> str:
    """Return the mode that `auto` means: WANDB_MODE where set, else online with an API key, else offline."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    with answering():
        return "online" if wandb.login(prompt=False, verify=False) else "offline"


def never_raises(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn whatever `method` raises into one warning per run; the training goes on without W&B."""

    @wraps(method)
    def guarded(self: "RunLogger", *args: Any, **kwargs: Any) -> Any:
        if self.broken:
            return None
        try:
            with answering(self.timeout):
                return method(self, *args, **kwargs)
        except Exception as error:
            self.broken = error
            self._give_up()
            later = "`convrepro sync` sends what a table's run lacks"
            warnings.warn(f"W&B is left out of this run from here on: {error}; {later}", stacklevel=2)
            return None

    return guarded


class RunLogger:
    """Logs to one open W&B run. Where W&B fails it stops logging, and `broken` holds the error.

    there: the last epoch and the last step that W&B has, or 0; timeout: seconds that the server has to answer;
    checkpoint: a file that becomes an artifact when the run is done; shared: whether another user of W&B's background
    service closes it later.
    """

    def __init__(
        self,
        run: wandb.Run,
        there: tuple[int, float],
        timeout: float,
        checkpoint: Path | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.run = run
        self.last, self.last_step = there
        self._taken = 0
        self.timeout = timeout
        self.checkpoint = checkpoint
        self.shared = shared
        self.broken: Exception | None = None
        self._begun = False
        self._confidential = confidential_variables()  # now: `answering` hides them from all that it guards

    @never_raises
    def catch_up(self, history: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]] = ()) -> None:
        """Log the epochs and the steps that W&B does not have, in order, and the last and the best values so far."""
        if not self._begun and self.last > len(history) + 2:
            warnings.warn(
                f"W&B has epochs up to {self.last} of this run, from an earlier training of it; they stay as they are, "
                "and later epochs are added. Use another project (logger.project=NAME) to log the whole run",
                stacklevel=3,
            )
        self._begun = True
        new = [line for line in numbered(history) if line["epoch"] > self.last]
        fresh = [row for row in steps[self._taken :] if row["step"] > self.last_step]
        self._taken = len(steps)
        for line in sorted([*fresh, *new], key=lambda line: line.get("step") or 0):
            if "epoch" in line:
                values = {"epoch": line["epoch"], FIRST: 1} | {key: line.get(key) for key in LOGGED}
                self.last = line["epoch"]
            else:
                values = {f"step/{key}": line[key] for key in LOGGED_STEP}
            values[STEP] = line.get("step")
            self.run.log({key: value for key, value in values.items() if value is not None})
        if new:
            self.run.summary.update(so_far(history))

    @never_raises
    def say(self, lines: str) -> None:
        """Write lines to the run's log in W&B; those that hold a secret are left out."""
        self.run.write_logs(self._harmless(lines))

    @never_raises
    def finish(self, final: Mapping[str, Any]) -> None:
        """Write the final summary and close the run; what was recorded offline is complete on the disk afterwards."""
        self.run.summary.update(dict(final))
        if self.run.offline or self.run.summary.get("error"):
            self.run.summary["error"] = ""  # what an attempt before this one may have failed of
        if self.checkpoint and self.checkpoint.exists():
            artifact = wandb.Artifact(f"model-{self.run.id}", type="model", metadata=dict(final))
            artifact.add_file(str(self.checkpoint), policy="immutable", skip_cache=True)
            self.run.log_artifact(artifact)
        self._end(0)

    @never_raises
    def fail(self, error: BaseException) -> None:
        """Close the run as failed, with the reason as `error` in its summary and, with its traceback, in its log.

        Where `error` is an interruption, the run goes on later: it is closed as preempted. W&B takes a run for
        preempted if the run was marked so and then exits with another code than 0.
        """
        code = 1
        trace = [str(error)] if isinstance(error, ConvReproError) else traceback.format_exception(error)
        self.run.write_logs(self._harmless("".join(trace)))
        if not isinstance(error, Interrupted):
            kind = type(error).__name__
            self.run.summary["error"] = self._harmless(f"{kind}: {error}")[:LONGEST] or kind
        else:
            self.run.mark_preempting()
            code = 128 + (signal.SIGUSR1 if error.requeue else signal.SIGTERM)
        self._end(code)

    def _harmless(self, text: str) -> str:
        """Return the lines of `text` that hold no secret, with their control characters escaped."""
        return "\n".join(visible(line) for line in text.splitlines() if not secret_in(line, self._confidential))

    def _end(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        if not self.shared:
            close(exit_code)

    def _give_up(self) -> None:
        """Close the run as failed, without waiting for a server that did not answer."""
        silent = isinstance(self.broken, Unanswered)
        if not silent:
            with suppress(Exception), answering(self.timeout):
                self.run.finish(exit_code=1)
        close(exit_code=1, brief=silent)


def build_logger(
    cfg: Mapping[str, Any],
    identity: Identity,
    folder: Path,
    config: Mapping[str, Any],
    static: Mapping[str, int],
    table: Table | None,
) -> RunLogger | None:
    """Open the run in W&B (see `choice.open_logger`); returns None where that fails, without raising."""
    began = {**{key: config.get(key) for key in ("table", "row", "seed")}, "static": static}
    try:
        logger = open_run(cfg, identity, folder, described(identity, config, *commit()))
        with answering(cfg["timeout"]):
            logger.run.summary.update(summary(began, table))
            if not logger.run.offline and logger.run.url:  # offline, the client warns that there is none
                print(f"W&B: {logger.run.url}", file=sys.stderr)
    except Exception as error:
        close(exit_code=1, brief=True)
        warnings.warn(f"W&B is left out of this run: {error}", stacklevel=2)
        return None
    return logger


def replay(
    cfg: Mapping[str, Any], identity: Identity, folder: Path, result: Mapping[str, Any], table: Table | None
) -> None:
    """Send what W&B lacks of a finished run, from its result, so that W&B has the run as if it was sent in training.

    `folder` is for the client's own files. The background service stays open for its caller; it is closed where this
    raises ConvReproError, which it does where W&B cannot be used.
    """
    found = result.get("environment") or {}
    about = described(identity, result["config"], found.get("commit"), found.get("dirty"))
    logger = _opened(cfg, folder, about, "online", shared=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        logger.catch_up(result["history"])
        logger.finish(summary(result, table))
    if logger.broken:
        raise logger.broken


def log_again(
    cfg: Mapping[str, Any], identity: Identity, folder: Path, result: Mapping[str, Any], table: Table | None
) -> None:
    """Do what `replay` does where W&B is used online; where that fails, a warning says so, and nothing is raised."""
    try:
        if offline_without_key(cfg["mode"]) == "online":
            replay(cfg, identity, folder, result, table)
    except Exception as error:
        warnings.warn(f"W&B is not told of this run: {error}", stacklevel=2)
    close()


def described(
    identity: Identity, config: Mapping[str, Any], revision: str | None, dirty: bool | None
) -> dict[str, Any]:
    """Describe the run by arguments of `wandb.init`: the group is the table, for a run of none
    WANDB_RUN_GROUP or `adhoc`, and the job type is `train` or `eval`.

    The configuration is the resolved tree without secrets, and scalars to group and filter by: `conv_name`,
    `data_name`, `budget_name`, `table`, `row`, `seed`, `commit`, `dirty`, and `epochs`, those that the run trains
    (`recipe.epochs` are the recipe's, which the budget may shorten).
    """
    trained = (config["budget"]["epochs"] or config["recipe"]["epochs"]) if config["train"] else 0
    scalars = {f"{group}_name": config[group]["name"] for group in ("data", "budget")}
    scalars = {"conv_name": made_by(config), **scalars}
    scalars |= {"table": identity.table, "row": identity.row, "seed": identity.seed, "commit": revision, "dirty": dirty}
    scalars["epochs"] = trained
    tags = [config["model"], *(scalars[f"{group}_name"] for group in ("conv", "data", "budget"))]
    return {
        "name": identity.name,
        "id": identity.run_id,
        "group": identity.table if config.get("table") else os.environ.get(GROUP, identity.table),
        "job_type": "train" if config["train"] else "eval",
        "tags": list(dict.fromkeys(tag[:TAG] for tag in [*tags, *([revision[:8]] if revision else [])])),
        "config": without_secrets({**config, **scalars}),
    }


def without_secrets(tree: Any) -> Any:
    """Return `tree` without the strings whose key looks like a secret's, and without any string that holds a secret.

    A run is rejected for most of these (see `config.secrets`); results of older versions were not.
    """

    def harmless(key: str, value: Any) -> bool:
        return not isinstance(value, str) or not (is_secret(str(key)) or secret_in(value))

    if isinstance(tree, Mapping):
        return {key: without_secrets(value) for key, value in tree.items() if harmless(key, value)}
    if isinstance(tree, list | tuple):
        return [without_secrets(value) for value in tree if harmless("", value)]
    return tree


def open_run(cfg: Mapping[str, Any], identity: Identity, folder: Path, about: Mapping[str, Any]) -> RunLogger:
    """Open the run that `about` describes; a run that W&B has already is continued.

    Where the server does not answer in `cfg["timeout"]` seconds the run is recorded offline, for `convrepro sync`.
    """
    mode = offline_without_key(cfg["mode"])
    try:
        return _opened(cfg, folder, about, mode)
    except ConvReproError as error:
        if mode != "online":
            raise
        of_table = f"convrepro sync {identity.table}"
        sync = of_table if "/" in identity.table else f"wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"
        warnings.warn(f"{error}; the run is recorded offline, and `{sync}` sends it", stacklevel=3)
        return _opened(cfg, folder, about, "offline")


def _opened(
    cfg: Mapping[str, Any], folder: Path, about: Mapping[str, Any], mode: str, shared: bool = False
) -> RunLogger:
    """Open the run; raises ConvReproError, with the background service closed, where that cannot be done in time."""
    try:
        with answering(cfg["timeout"]):
            run = _start(cfg, folder, about, mode)
            run.define_metric("*", step_metric=STEP, step_sync=False)  # no step is made up where none is known
            run.define_metric(FIRST, step_metric=STEP, step_sync=False, hidden=True)
            known = dict(run.summary)
            there = logged(folder) if run.offline else (epoch_in(known), step_in(known))
    except ConvReproError:
        close(exit_code=1, brief=True)
        raise
    checkpoint = folder / LAST if cfg["checkpoints"] else None
    return RunLogger(run, there, cfg["timeout"], checkpoint, shared=shared)


def _start(cfg: Mapping[str, Any], folder: Path, about: Mapping[str, Any], mode: str) -> wandb.Run:
    online = mode == "online"  # else no server is asked, and only `answering` limits how long the disk takes
    settings = wandb.Settings(
        reinit="create_new",  # and never the run that another part of the process left open
        silent=True,  # else it also asks the server for the name of the user, however long that takes
        console="off",  # what else the process prints is not the run's: its own lines are given to `say`
        disable_git=True,  # it sends the address of the repository and a patch; the commit is in the configuration
        disable_code=True,
        x_disable_meta=any(is_secret(word) for word in sys.argv[1:]),  # it holds the command line
        init_timeout=cfg["timeout"] if online else cfg["timeout"] + GRACE,
        finish_timeout=cfg["timeout"] if online else 0,  # 0: without a limit of the client's own
        finish_timeout_raises=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=cfg["project"],
        entity=cfg["entity"],
        dir=str(folder),
        mode=cast(Literal["online", "offline", "disabled"], mode),
        resume="allow",
        settings=settings,
        **about,
    )
