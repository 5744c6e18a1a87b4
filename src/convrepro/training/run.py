"""One run: build, fit or evaluate, write result.json. Everything else in the suite goes through here."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from convrepro.complexity.network import count_network
from convrepro.config.overrides import key_of
from convrepro.config.schema import RunConfig
from convrepro.config.strict import NotJson, text_of
from convrepro.data import ImageData
from convrepro.errors import ConvReproError, Interrupted
from convrepro.models.build import build_network
from convrepro.models.weights import is_url
from convrepro.runs import interruption
from convrepro.runs.environment import describe
from convrepro.runs.finished import finished
from convrepro.runs.folder import hold, rank
from convrepro.runs.identity import Identity, named
from convrepro.runs.plan import check_row
from convrepro.runs.protocol import Protocol
from convrepro.runs.result import FILE, LAST, SCHEMA, Result, finite
from convrepro.runs.storage import write_json
from convrepro.runs.summary import STATIC, last_and_best, rules_of, summary
from convrepro.tables import Table, load_table
from convrepro.tracking.choice import Logger, log_finished, open_logger
from convrepro.training.averaging import AveragedWeights
from convrepro.training.checkpoints import Checkpoints, WholeFiles, resumable
from convrepro.training.data import image_data
from convrepro.training.identity import budget_label, changed_code, identity_of, others_code, protocol_of
from convrepro.training.log import RunLog
from convrepro.training.module import Classifier
from convrepro.training.progress import Progress, Watch, Watched, bar
from convrepro.training.rehearsal import rehearse, rehearse_batch, rehearse_output
from convrepro.training.saliency import saliency

#: Warnings of Lightning about its own internals, or about what is meant here.
NOISE = (
    r".*does not have many workers.*|.*exists and is not empty.*|.*LeafSpec.*|.*smaller than the logging interval.*"
    r"|.*`srun` command is available.*|.*all_gather is deprecated.*"
)


@dataclass(frozen=True)
class Run:
    """One run: its configuration, the overrides that its result keeps, what it is, its table, and who watches it."""

    cfg: RunConfig
    overrides: list[str]
    protocol: Protocol
    identity: Identity
    table: Table | None = None
    watch: Watch | None = None

    @property
    def folder(self) -> Path:
        return self.identity.folder(Path(self.cfg.runs))


def check(cfg: RunConfig) -> None:
    """Find the data, build network, optimizer and schedule of `cfg`, and try its smallest batch, training nothing.

    Raises ConvReproError for what would fail.
    """
    rehearse(cfg)
    data = image_data(cfg)
    data.check()
    network, _ = build_network(cfg)
    rehearse_batch(network, cfg, data)


def run(
    cfg: RunConfig,
    overrides: Sequence[str],
    echo: Callable[[str], None] = print,
    table: Table | None = None,
    watch: Watch | None = None,
) -> Result:
    """Execute the run that `cfg` describes and return its result; a finished one is only read.

    `table` is that of the run, where it is at hand; else the one that `cfg` names, if there is one. `watch` is called
    with each epoch of the history once it is evaluated, and may end the run by raising Stopped.

    A run that was interrupted continues from its newest whole checkpoint. Of the processes that train one run together
    the first alone writes and speaks. Raises Busy where another process is at this run, Interrupted where a signal
    asked for it (see `interruption`), and ConvReproError for what a user can put right.
    """
    if not cfg.train and not cfg.weights:
        raise ConvReproError("train=false only evaluates, so it needs weights=CHECKPOINT")
    table = table or (load_table(cfg.table) if cfg.table else None)
    if table:
        check_row(cfg, table, overrides)
    _check_nodes(cfg.trainer.num_nodes)
    rehearse(cfg)
    protocol = protocol_of(cfg)
    identity = identity_of(cfg, overrides, protocol)
    this = Run(cfg, _recorded(cfg, overrides), protocol, identity, table, watch)
    first = _first(cfg)
    echo = echo if first else _silent
    if result := _finished(this, echo):
        return result
    if first and (request := interruption.requested()):
        raise Interrupted(f"interrupted before {identity.name} started", requeue=request == "requeue")
    with hold(this.folder) if first else nullcontext():
        # by now the process that held the folder until a moment ago may have finished the run
        if result := _finished(this, echo, repair=first):
            return result
        with _own_settings():
            return _train(this, echo)


def _first(cfg: RunConfig) -> bool:
    """Whether this process is the first of those that train the run, the one that writes and speaks."""
    return cfg.trainer.processes == 1 or rank() == 0


def _silent(line: str) -> None:
    """What other processes than the first have to say."""


def _train(this: Run, echo: Callable[[str], None]) -> Result:
    cfg, identity, folder = this.cfg, this.identity, this.folder
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    clock = time.monotonic()
    data = image_data(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    network, report = build_network(cfg, saliency(data) if cfg.prune.by == "taylor" else None)
    counted = count_network(network, cfg, cfg.image_size)
    rehearse_output(network, cfg)
    rehearse_batch(network, cfg, data)
    static = {name: int(counted.total(rule)) for name, rule in STATIC.items()}
    told = Told(echo)
    told(f"{identity.name} ({budget_label(cfg)}): {report.summary()}")
    told(f"{counted.headline()}; folder {folder}")
    if report.weights:
        told(report.weights)
    progress = Progress(folder, cfg.epochs, told)
    module, trainer, logger = assemble(this, network, static, progress, pruned=bool(report.pruned))
    told.go_to(logger)
    environment = describe(str(trainer.strategy.root_device), cfg.trainer.precision)  # now: the code that is loaded
    if others := others_code(cfg):
        environment["plugins"] = others
    with _closing(logger):
        _execute(this, trainer, module, data, told)
        measured = {
            "schema": SCHEMA,
            "status": "done",
            "table": cfg.table,
            "row": cfg.row,
            "seed": cfg.seed,
            "budget": cfg.budget.name,
            "overrides": this.overrides,
            "config": cfg.model_dump(),
            "protocol": this.protocol.record,
            "metrics": _metrics(module),
            "static": static,
            "counts": {rule: str(counted.total(rule)) for rule in rules_of(this.table)},
            "history": module.history,
            "environment": environment,
            "time": {
                "started": started,
                "seconds": round(time.monotonic() - clock, 1),
                "images_per_second": progress.images_per_second,
            },
        }
        result: Result = finite(measured)
        if trainer.is_global_zero:
            _write(folder, result)
        top1, seconds = result["metrics"]["last"]["top1"], time.monotonic() - clock
        told(f"{identity.name}: top-1 {top1:.2f} %, {seconds:.0f} s, {folder / FILE}")
        if logger:
            logger.finish(summary(result, this.table))
    return result


class Told:
    """Echoes what is said of a run, and gives it to the run's logger: what was said before that is open, too."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self.echo = echo
        self.logger: Logger | None = None
        self._waiting: list[str] = []

    def __call__(self, line: str) -> None:
        self.echo(line)
        if self.logger:
            self.logger.say(line)
        else:
            self._waiting.append(line)

    def go_to(self, logger: Logger | None) -> None:
        self.logger = logger
        if logger:
            logger.say("\n".join(self._waiting))


def assemble(
    this: Run, network: torch.nn.Module, static: dict[str, int], progress: Progress, *, pruned: bool = False
) -> tuple[Classifier, L.Trainer, Logger | None]:
    """Module, trainer and logger of a run, all from its configuration; checkpoints say whether it is `pruned`."""
    cfg, folder, epochs = this.cfg, this.folder, progress.epochs
    config = cfg.model_dump()
    if cfg.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        network.compile()
    settings = {
        "model": cfg.model,
        "model_args": cfg.model_args,
        "conv": cfg.conv.model_dump(),
        "pruned": pruned,
        "overrides": this.overrides,
        "config": config,
        "protocol": this.protocol.record,
    }
    module = Classifier(
        network,
        cfg.recipe.model_dump(),
        num_classes=cfg.data.num_classes,
        epochs=epochs,
        seed=cfg.seed,
        settings=settings,
    )
    logger = open_logger(config["logger"], this.identity, folder, config, static, this.table) if _first(cfg) else None
    files = WholeFiles()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    arguments: dict[str, Any] = {
        "accelerator": cfg.trainer.accelerator,
        "devices": cfg.trainer.devices,
        "num_nodes": cfg.trainer.num_nodes,
        "strategy": cfg.trainer.strategy,
        "precision": cfg.trainer.precision,
        "deterministic": cfg.trainer.deterministic,
        "accumulate_grad_batches": cfg.trainer.accumulate,
        "gradient_clip_val": cfg.recipe.clip_grad,
        "max_epochs": epochs,
        "logger": False,
        "callbacks": [
            *([AveragedWeights(cfg.recipe.ema)] if cfg.train and cfg.recipe.ema else []),
            RunLog(logger.catch_up if logger else None, cfg.logger.every_n_steps),
            Checkpoints(folder, cfg.trainer.checkpoint_steps, files),
            progress,
            *([Watched(this.watch)] if this.watch else []),
            *bar(),
        ],
        "enable_progress_bar": bool(bar()),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    try:
        with _quiet():
            trainer = L.Trainer(plugins=[files, *_cluster(cfg.trainer.processes)], **arguments)
    except (MisconfigurationException, TypeError, ValueError) as error:
        asked = ", ".join(
            f"{key}={text_of(getattr(cfg.trainer, key))}" for key in ("accelerator", "devices", "strategy")
        )
        reason = " ".join(str(error).split())
        raise ConvReproError(f"trainer: {asked} does not fit this machine: {reason}") from error
    trainer.precision_plugin.convert_module(module)  # Lightning does it after a checkpoint is loaded, which rounds that
    return module, trainer, logger


def _check_nodes(nodes: int) -> None:
    """Raises ConvReproError where several nodes are asked for and nobody starts the processes of the others."""
    if nodes == 1 or "NODE_RANK" in os.environ or SLURMEnvironment.detect() or TorchElasticEnvironment.detect():
        return
    raise ConvReproError(
        f"trainer.num_nodes={nodes} needs processes on each node: use `convrepro submit`, srun or torchrun"
    )


def _cluster(processes: int) -> list[ClusterEnvironment]:
    """What Lightning finds out about SLURM by itself, without its handler that saves in the middle of a step.

    A run of one process is not spread over the tasks of the shell that it was started in.
    """
    if not SLURMEnvironment.detect() or TorchElasticEnvironment.detect():
        return []
    return [LightningEnvironment() if processes == 1 else SLURMEnvironment(auto_requeue=False)]


def _execute(this: Run, trainer: L.Trainer, module: Classifier, data: ImageData, echo: Callable[[str], None]) -> None:
    train = this.cfg.train
    checkpoint = resumable(this.folder, this.protocol, echo) if train else None
    if checkpoint:
        echo(f"resumes from {checkpoint}")
    with _quiet(), _interruptible():
        if train:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        else:
            trainer.validate(module, data, verbose=False)


def _metrics(module: Classifier) -> dict[str, dict[str, float]]:
    """Those of the last and of the best epoch; of an evaluation both are the one measurement."""
    return last_and_best(module.history or [{"epoch": None, **module.validated}])


def _recorded(cfg: RunConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides to keep; starting weights from another row are named by the table, not by a path."""
    return [o for o in named(overrides) if not (cfg.table and key_of(o) == "weights" and not is_url(o))]


def _finished(this: Run, echo: Callable[[str], None], repair: bool = False) -> Result | None:
    """The result of the run, or None where it has none; with `repair` a damaged one is moved out of the way.

    A damaged result is no loss if it can be written again without training twice: from the last checkpoint, which holds
    the history, or by evaluating again. Elsewhere the error is for the user to decide.
    """
    cfg, folder = this.cfg, this.folder
    try:
        result = finished(folder, this.protocol)
    except NotJson as error:
        if cfg.train and not (folder / LAST).exists():
            raise ConvReproError(f"{error}, and there is no checkpoint: move it away to train anew") from error
        if repair:
            torn = (folder / FILE).rename(folder / f"{FILE}.torn")
            echo(f"{error}: moved to {torn.name}, and written again without training")
        return None
    if result:
        changed = changed_code(cfg, result)
        echo(f"{folder}: finished, top-1 {result['metrics']['last']['top1']:.2f} %; skipped{changed}")
        if _first(cfg):
            log_finished(cfg.logger.model_dump(), this.identity, folder, result, this.table)
    return result


def _write(folder: Path, result: Result) -> None:
    try:
        write_json(folder / FILE, result)
    except ConvReproError as error:
        whole = f"{folder / LAST} is intact, and the same command continues from it without training again"
        raise ConvReproError(f"{error}; {whole}" if (folder / LAST).exists() else str(error)) from error


@contextmanager
def _own_settings() -> Iterator[None]:
    """What a run and Lightning's trainer set for the whole process is as before once the run is over."""
    flushed = sys.float_info.min / 2 == 0
    exact = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    tuned = torch.backends.cudnn.benchmark
    torch.set_flush_denormal(True)  # squared gradients below 1e-38 made an RMSprop step on a CPU twice as slow
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.use_deterministic_algorithms(exact, warn_only=only_warns)
        torch.backends.cudnn.benchmark = tuned


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, which Lightning answers by exiting with 1, stays what it is."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOISE)
        yield


@contextmanager
def _closing(logger: Logger | None) -> Iterator[None]:
    """Tell the logger that the run failed where it did, or that it is going to be continued."""
    try:
        yield
    except BaseException as error:
        if logger:
            logger.fail(error)
        raise
