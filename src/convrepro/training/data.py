"""The images of a run, and how its batch is divided among devices."""

from omegaconf import DictConfig, OmegaConf

from convrepro.config.compose import plain
from convrepro.data import ImageData
from convrepro.errors import ConvReproError
from convrepro.models.build import image_size


def image_data(cfg: DictConfig) -> ImageData:
    """The data module of a run, at the resolution and in the amount that its budget allows."""
    return ImageData(
        **{**plain(cfg.data), "image_size": image_size(cfg)},
        batch_size=loader_batch(cfg),
        augment=plain(cfg.recipe.augment),
        normalize=cfg.recipe.normalize,
        seed=cfg.seed,
        train_examples=cfg.budget.train_examples,
        test_examples=cfg.budget.test_examples,
        sample=cfg.budget.sample,
        num_workers=cfg.trainer.num_workers,
    )


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
