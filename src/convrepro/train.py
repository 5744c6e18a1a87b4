"""One run: build, fit or evaluate, write result.json. Everything else in the suite goes through here."""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from convrepro import complexity, models
from convrepro.data import ImageData
from convrepro.environment import describe
from convrepro.errors import ConvReproError
from convrepro.identity import Identity, digest, scientific
from convrepro.module import Classifier
from convrepro.progress import EpochLine, bar
from convrepro.result import FILE, LAST, SCHEMA, read_result, write_json
from convrepro.tracking import RunLogger, build_logger, summary
from convrepro.weights import is_url, read_checkpoint

#: Warnings of Lightning about its own internals, or about what is meant here.
NOISE = r".*does not have many workers.*|.*exists and is not empty.*|.*LeafSpec.*|.*smaller than the logging interval.*"
STATIC = {
    "macs": "conv_fc",
    "params": "params",
    "multiplications": "multiplications",
    "shifts": "shifts",
    "weight_bits": "weight_bits",
}


def identity_of(cfg: DictConfig, overrides: Sequence[str]) -> Identity:
    """The run that `cfg` describes; an ad-hoc one is named by its network, operator and overrides."""
    if cfg.table:
        return Identity(cfg.table, cfg.row, cfg.seed, cfg.budget.name)
    changed = [o for o in overrides if o.startswith("budget.")] + scientific(overrides)
    return Identity("adhoc", f"{cfg.model}-{cfg.conv.name}-{digest(changed)}", cfg.seed, cfg.budget.name)


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
    devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) else 1
    parts = devices * cfg.trainer.num_nodes * cfg.trainer.accumulate
    if cfg.recipe.batch_size % parts:
        raise ConvReproError(
            f"recipe.batch_size={cfg.recipe.batch_size} is the global batch; devices={devices} x "
            f"num_nodes={cfg.trainer.num_nodes} x accumulate={cfg.trainer.accumulate} = {parts} must divide it"
        )
    return cfg.recipe.batch_size // parts


def run(cfg: DictConfig, overrides: Sequence[str], echo: Callable[[str], None] = print) -> dict[str, Any]:
    """Execute the run that `cfg` describes and return its result; a finished one is only read.

    A run that was interrupted continues from its last checkpoint.
    """
    identity = identity_of(cfg, overrides)
    folder = identity.folder(Path(cfg.runs))
    finished = read_result(folder)
    if finished:
        return _same_run(finished, cfg, overrides, folder, echo)
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
    module, trainer, logger = assemble(cfg, identity, folder, network, static, overrides, echo)
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
            "history": module.history,
            "environment": describe(str(trainer.strategy.root_device), cfg.trainer.precision),
            "time": {"started": started, "seconds": round(time.monotonic() - clock, 1)},
        }
        if trainer.is_global_zero:
            write_json(folder / FILE, result)
        if isinstance(logger, RunLogger):
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
    echo: Callable[[str], None],
) -> tuple[Classifier, L.Trainer, Any]:
    """Module, trainer and logger of a run, all from its configuration."""
    epochs = cfg.budget.epochs or cfg.recipe.epochs
    if cfg.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        network.compile()
    settings = {"model": cfg.model, "conv": _plain(cfg.conv), "overrides": _recorded(cfg, overrides)}
    module = Classifier(
        network, _plain(cfg.recipe), num_classes=cfg.data.num_classes, epochs=epochs, seed=cfg.seed, settings=settings
    )
    logger = build_logger(_plain(cfg.logger), identity, folder, {**_plain(cfg), "static": static})
    callbacks: list[Callback] = [*_checkpoints(folder, cfg.trainer.checkpoint_steps), EpochLine(epochs, echo), *bar()]
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
        "logger": logger or False,
        "callbacks": callbacks,
        "enable_progress_bar": bool(bar()),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    try:
        return module, L.Trainer(**arguments), logger
    except (MisconfigurationException, ValueError) as error:
        raise ConvReproError(f"trainer={_plain(cfg.trainer)} does not fit this machine: {error}") from error


def _checkpoints(folder: Path, steps: int | None) -> list[Callback]:
    """Savers of the one checkpoint that a run continues from: after each epoch, and every so many steps if asked."""
    common = {"dirpath": folder, "filename": Path(LAST).stem, "enable_version_counter": False}
    savers = [ModelCheckpoint(**common, every_n_epochs=1, save_on_train_epoch_end=True)]
    if steps:
        savers.append(ModelCheckpoint(**common, every_n_train_steps=steps, save_on_train_epoch_end=False))
    return savers


def _execute(
    cfg: DictConfig, trainer: L.Trainer, module: Classifier, data: ImageData, folder: Path, echo: Callable[[str], None]
) -> None:
    checkpoint = _resumable(folder / LAST, module.settings) if cfg.train else None
    if checkpoint:
        echo(f"resumes from {checkpoint}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOISE)
        if cfg.train:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        else:
            trainer.validate(module, data, verbose=False)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _resumable(path: Path, settings: dict[str, Any]) -> Path | None:
    """The checkpoint that this run continues from, if any; raises where it is torn or of a run with other settings."""
    if not path.exists():
        return None
    try:
        saved = read_checkpoint(path)["settings"]
    except (ConvReproError, KeyError) as error:
        raise ConvReproError(f"{path} is no checkpoint to continue from ({error}); delete it to start anew") from error
    if saved != settings:
        raise ConvReproError(f"{path} is of a run with other settings ({saved} instead of {settings}); move it away")
    return path


def _metrics(module: Classifier) -> dict[str, dict[str, float]]:
    """Last and best epoch by top-1; of an evaluation both are the one measurement."""
    epochs = module.history or [{"epoch": None, **module.validated}]

    def pick(line: dict[str, Any]) -> dict[str, Any]:
        return {"epoch": line["epoch"], **{k: line[f"val/{k}"] for k in ("top1", "top5", "loss")}}

    return {"last": pick(epochs[-1]), "best": pick(max(epochs, key=lambda line: line["val/top1"]))}


def _recorded(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides that define the result; starting weights from another row are named by the table, not by a path."""
    return [o for o in scientific(overrides) if not (cfg.table and o.startswith("weights=") and not is_url(o))]


def _same_run(
    finished: dict[str, Any], cfg: DictConfig, overrides: Sequence[str], folder: Path, echo: Callable[[str], None]
) -> dict[str, Any]:
    wanted = _recorded(cfg, overrides)
    if sorted(finished["overrides"]) != sorted(wanted):
        raise ConvReproError(
            f"{folder} holds a finished run of other overrides ({' '.join(finished['overrides'])} instead of "
            f"{' '.join(wanted)}); move it away or choose another runs="
        )
    echo(f"{folder}: finished, top-1 {finished['metrics']['last']['top1']:.2f} %; skipped")
    return finished


@contextmanager
def _closing(logger: Any) -> Any:
    """Tell W&B that the run failed where it did."""
    try:
        yield
    except BaseException:
        if isinstance(logger, RunLogger):
            logger.finish({}, exit_code=1)
        raise


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
