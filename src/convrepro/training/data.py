"""The images of a run."""

from convrepro.config.schema import RunConfig
from convrepro.data import ImageData


def image_data(cfg: RunConfig) -> ImageData:
    """The data module of a run, at the resolution and in the amount that its budget allows."""
    return ImageData(
        **{**cfg.data.model_dump(), "image_size": cfg.image_size},
        batch_size=cfg.loader_batch,
        augment=cfg.recipe.augment.model_dump(),
        normalize=cfg.recipe.normalize,
        seed=cfg.seed,
        train_examples=cfg.budget.train_examples,
        test_examples=cfg.budget.test_examples,
        sample=cfg.budget.sample,
        holdout=cfg.budget.holdout,
        num_workers=cfg.trainer.num_workers,
    )
