"""One run: build, fit or evaluate, write result.json. Everything else in the suite goes through here."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from convrepro import complexity
from convrepro.data import ImageData
from convrepro.errors import ConvReproError, Interrupted
from convrepro.models import build as models
from convrepro.models.weights import is_url
from convrepro.runs import interruption
from convrepro.runs.environment import describe
from convrepro.runs.folder import hold, rank
from convrepro.runs.identity import Identity, changed, digest, scientific
from convrepro.runs.result import FILE, LAST, SCHEMA, TornResult, finite, read_result, write_json
from convrepro.runs.summary import STATIC, last_and_best, rules_of, summary
from convrepro.tracking.logger import RunLogger, build_logger
from convrepro.training.checkpoints import Checkpoints, WholeFiles, resumable
from convrepro.training.module import Classifier
from convrepro.training.progress import EpochLog, Progress, bar

#: Warnings of Lightning about its own internals, or about what is meant here.
NOISE = (
    r".*does not have many workers.*|.*exists and is not empty.*|.*LeafSpec.*|.*smaller than the logging interval.*"
    r"|.*`srun` command is available.*|.*all_gather is deprecated.*"
)


def identity_of(cfg: DictConfig, overrides: Sequence[str]) -> Identity:
    """The run that `cfg` describes; an ad-hoc one is named by its network, operator and overrides."""
    if cfg.table:
        return Identity(cfg.table, cfg.row, cfg.seed, cfg.budget.name)
    own = [o for o in overrides if o.startswith("budget.")] + scientific(overrides)
    return Identity("adhoc", f"{cfg.model}-{cfg.conv.name}-{digest(own)}", cfg.seed, cfg.budget.name)


def image_data(cfg: DictConfig) -> ImageData:
    """The data module of a run, at the resolution and in the amount that its budget allows."""
    return ImageData(
        **{**_plain(cfg.data), "image_size": image_size(cfg)},
        batch_size=loader_batch(cfg),
        augment=_plain(cfg.recipe.augment),
        normalize=cfg.recipe.normalize,
        seed=cfg.seed,
        train_examples=cfg.budget.train_examples,
        test_examples=cfg.budget.test_examples,
        sample=cfg.budget.sample,
        num_workers=cfg.trainer.num_workers,
    )


def image_size(cfg: DictConfig) -> int:
    """Side of the images that this run sees, in pixels."""
    return min(cfg.data.image_size, cfg.budget.max_image_size or cfg.data.image_size)


def check(cfg: DictConfig) -> None:
    """Find the data and build the network of `cfg`, training nothing; raises ConvReproError for what would fail."""
    image_data(cfg).check()
    build_network(cfg)


def build_network(cfg: DictConfig) -> tuple[torch.nn.Module, Any]:
    """The network of `cfg` with its convolutions replaced, and what was."""
    return models.build(
        cfg.model,
        conv=_plain(cfg.conv),
        num_classes=cfg.data.num_classes,
        in_chans=cfg.data.channels,
        se_reduction=cfg.se_reduction,
        init=cfg.recipe.init,
        weights=cfg.weights,
        weights_sha256=cfg.weights_sha256,
        model_args=_plain(cfg.model_args),
    )


def count_network(network: torch.nn.Module, cfg: DictConfig, side: int) -> complexity.Count:
    """The network's cost on one image of the data, `side` pixels wide and high.

    Raises ConvReproError where the network cannot take such an image, and as `complexity.count` does.
    """
    size = (cfg.data.channels, side, side)
    try:
        return complexity.count(network, size)
    except ConvReproError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        own = "x".join(map(str, network.pretrained_cfg["input_size"]))
        raise ConvReproError(
            f"{cfg.model} cannot take an image of {'x'.join(map(str, size))} (data.image_size={cfg.data.image_size}): "
            f"{error}; it was made for {own}"
        ) from error


def loader_batch(cfg: DictConfig) -> int:
    """Images in one batch on one device, from the recipe's global batch; raises where that does not divide."""
    devices = devices_of(cfg)
    parts = devices * cfg.trainer.num_nodes * cfg.trainer.accumulate
    if cfg.recipe.batch_size % parts:
        raise ConvReproError(
            f"recipe.batch_size={cfg.recipe.batch_size} is the global batch; devices={devices} x "
            f"num_nodes={cfg.trainer.num_nodes} x accumulate={cfg.trainer.accumulate} = {parts} must divide it"
        )
    return cfg.recipe.batch_size // parts


def devices_of(cfg: DictConfig) -> int:
    """The number of devices on each node; raises ConvReproError where `trainer.devices` leaves it open."""
    devices = cfg.trainer.devices
    number = len(devices) if OmegaConf.is_list(devices) else devices
    if type(number) is not int or number < 1:
        raise ConvReproError(
            f"trainer.devices={devices} must be a number of at least 1 or a list of devices, for the recipe's batch to "
            "be divided among them"
        )
    return number


def run(cfg: DictConfig, overrides: Sequence[str], echo: Callable[[str], None] = print) -> dict[str, Any]:
    """Execute the run that `cfg` describes and return its result; a finished one is only read.

    A run that was interrupted continues from its newest whole checkpoint. Of the processes that train one run together
    the first alone writes and speaks. Raises Busy where another process is at this run, Interrupted where a signal
    asked for it (see `interruption`), and ConvReproError for what a user can put right.
    """
    identity = identity_of(cfg, overrides)
    folder = identity.folder(Path(cfg.runs))
    first = _first(cfg)
    echo = echo if first else _silent
    if finished := _finished(cfg, overrides, folder, echo):
        return finished
    if first and (request := interruption.requested()):
        raise Interrupted(f"interrupted before {identity.name} started", requeue=request == "requeue")
    with hold(folder) if first else nullcontext():
        # by now the process that held the folder until a moment ago may have finished the run
        return _finished(cfg, overrides, folder, echo, repair=first) or _train(cfg, overrides, identity, folder, echo)


def _first(cfg: DictConfig) -> bool:
    """Whether this process is the first of those that train the run, the one that writes and speaks."""
    return cfg.trainer.devices == cfg.trainer.num_nodes == 1 or rank() == 0


def _silent(line: str) -> None:
    """What other processes than the first have to say."""


def _train(
    cfg: DictConfig, overrides: Sequence[str], identity: Identity, folder: Path, echo: Callable[[str], None]
) -> dict[str, Any]:
    torch.set_flush_denormal(True)  # squared gradients below 1e-38 made an RMSprop step on a CPU twice as slow
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.monotonic()
    if not cfg.train and not cfg.weights:
        raise ConvReproError("train=false only evaluates, so it needs weights=CHECKPOINT")
    data = image_data(cfg)
    data.check()
    L.seed_everything(cfg.seed, verbose=False)
    network, report = build_network(cfg)
    counted = count_network(network, cfg, image_size(cfg))
    static = {name: counted.total(rule) for name, rule in STATIC.items()}
    echo(f"{identity.name} ({identity.budget}): {report.summary()}")
    echo(f"{counted.headline()}; folder {folder}")
    progress = Progress(folder, cfg.budget.epochs or cfg.recipe.epochs, echo)
    module, trainer, logger = assemble(cfg, identity, folder, network, static, overrides, progress)
    environment = describe(str(trainer.strategy.root_device), cfg.trainer.precision)  # now: the code that is loaded
    with _closing(logger):
        _execute(cfg, trainer, module, data, folder, echo)
        result = {
            "schema": SCHEMA,
            "status": "done",
            "table": cfg.table,
            "row": cfg.row,
            "seed": cfg.seed,
            "budget": cfg.budget.name,
            "overrides": _recorded(cfg, overrides),
            "config": _plain(cfg),
            "metrics": _metrics(module),
            "static": static,
            "counts": {rule: str(counted.total(rule)) for rule in rules_of(cfg.table, cfg.row)},
            "history": module.history,
            "environment": environment,
            "time": {
                "started": started,
                "seconds": round(time.monotonic() - clock, 1),
                "images_per_second": progress.images_per_second,
            },
        }
        result = finite(result)
        if trainer.is_global_zero:
            _write(folder, result)
        if logger:
            logger.finish(summary(result))
    last = result["metrics"]["last"]
    echo(f"{identity.name}: top-1 {last['top1']:.2f} %, {result['time']['seconds']:.0f} s, {folder / FILE}")
    return result


def assemble(
    cfg: DictConfig,
    identity: Identity,
    folder: Path,
    network: torch.nn.Module,
    static: dict[str, int],
    overrides: Sequence[str],
    progress: Progress,
) -> tuple[Classifier, L.Trainer, RunLogger | None]:
    """Module, trainer and logger of a run, all from its configuration."""
    epochs = progress.epochs
    if cfg.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        network.compile()
    settings = {
        "model": cfg.model,
        "model_args": _plain(cfg.model_args),
        "conv": _plain(cfg.conv),
        "overrides": _recorded(cfg, overrides),
    }
    module = Classifier(
        network, _plain(cfg.recipe), num_classes=cfg.data.num_classes, epochs=epochs, seed=cfg.seed, settings=settings
    )
    logger = build_logger(_plain(cfg.logger), identity, folder, _plain(cfg), static) if _first(cfg) else None
    files = WholeFiles()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    arguments = {
        "accelerator": cfg.trainer.accelerator,
        "devices": cfg.trainer.devices,
        "num_nodes": cfg.trainer.num_nodes,
        "strategy": cfg.trainer.strategy,
        "precision": cfg.trainer.precision,
        "deterministic": cfg.trainer.deterministic,
        "accumulate_grad_batches": cfg.trainer.accumulate,
        "max_epochs": epochs,
        "logger": False,
        "callbacks": [
            *([EpochLog(logger.catch_up)] if logger else []),
            Checkpoints(folder, cfg.trainer.checkpoint_steps, files),
            progress,
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
            return module, L.Trainer(plugins=[files, *_cluster()], **arguments), logger
    except (MisconfigurationException, ValueError) as error:
        raise ConvReproError(f"trainer={_plain(cfg.trainer)} does not fit this machine: {error}") from error


def _cluster() -> list[SLURMEnvironment]:
    """What Lightning finds out about SLURM by itself, without its handler that saves in the middle of a step."""
    found = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if found else []


def _execute(
    cfg: DictConfig, trainer: L.Trainer, module: Classifier, data: ImageData, folder: Path, echo: Callable[[str], None]
) -> None:
    checkpoint = resumable(folder, module.settings, echo) if cfg.train else None
    if checkpoint:
        echo(f"resumes from {checkpoint}")
    with _quiet(), _interruptible():
        if cfg.train:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        else:
            trainer.validate(module, data, verbose=False)


def _metrics(module: Classifier) -> dict[str, dict[str, float]]:
    """Those of the last and of the best epoch; of an evaluation both are the one measurement."""
    return last_and_best(module.history or [{"epoch": None, **module.validated}])


def _recorded(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides that define the result; starting weights from another row are named by the table, not by a path."""
    return [o for o in scientific(overrides) if not (cfg.table and o.startswith("weights=") and not is_url(o))]


def _finished(
    cfg: DictConfig, overrides: Sequence[str], folder: Path, echo: Callable[[str], None], repair: bool = False
) -> dict[str, Any] | None:
    """The result in `folder` of this very run, or None; with `repair` a torn one is moved out of the way.

    A torn one is no loss where it can be made again without training twice: from the last checkpoint, which holds the
    history, or by evaluating again. Elsewhere the error is for the user to decide.
    """
    try:
        finished = read_result(folder)
    except TornResult as error:
        if cfg.train and not (folder / LAST).exists():
            raise ConvReproError(f"{error}, and there is no checkpoint: move it away to train anew") from error
        if repair:
            torn = (folder / FILE).rename(folder / f"{FILE}.torn")
            echo(f"{error}: moved to {torn.name}, and made again without training")
        return None
    if not finished:
        return None
    wanted = _recorded(cfg, overrides)
    if sorted(finished["overrides"]) != sorted(wanted):
        raise ConvReproError(
            f"{folder} holds a finished run of other overrides ({' '.join(finished['overrides'])} instead of "
            f"{' '.join(wanted)}); move it away or choose another runs="
        )
    if other := changed(finished["config"], _plain(cfg)):
        raise ConvReproError(f"{folder} holds a finished run of the same overrides, but {other}; move it away")
    echo(f"{folder}: finished, top-1 {finished['metrics']['last']['top1']:.2f} %; skipped")
    return finished


def _write(folder: Path, result: dict[str, Any]) -> None:
    try:
        write_json(folder / FILE, result)
    except ConvReproError as error:
        whole = f"{folder / LAST} is whole, and the same command goes on from it without training again"
        raise ConvReproError(f"{error}; {whole}" if (folder / LAST).exists() else str(error)) from error


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
def _closing(logger: RunLogger | None) -> Iterator[None]:
    """Tell W&B that the run failed where it did, or that it is going to be continued."""
    try:
        yield
    except BaseException as error:
        if logger:
            logger.fail(error)
        raise


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
