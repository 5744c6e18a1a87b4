"""Tries what a configuration asks for before any data is read: names, knobs, optimizer, schedule, smallest batch."""

import copy
import math
import warnings

import torch
from torch import nn

from convrepro.complexity.tracing import blank_image, counting_form
from convrepro.config.schema import RunConfig
from convrepro.data import ImageData
from convrepro.data.loader import smallest_batch
from convrepro.errors import ConvReproError
from convrepro.models.build import check_names
from convrepro.training.optim import build_optimizer, build_schedule, step_schedule

#: Epochs of which the learning rates are tried one by one; the schedule of a longer run is tried to here.
LONGEST = 2000


def rehearse(cfg: RunConfig) -> None:
    """Look up the model, the operator and its knobs, build the optimizer and the schedule of a run, take a step with
    one and all epochs of the other.

    Raises ConvReproError as `models.build.check_names` does, for a name or argument that does not exist, for an
    optimizer or schedule that wants what a run does not give it (a closure, second derivatives, a metric, a function),
    and for a learning rate that is not a number of at least 0. Also raises for a clipped gradient that the optimizer
    would scale after the clipping.
    """
    check_names(cfg.model, cfg.conv)
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,))]
    recipe = cfg.recipe.model_dump()
    optimizer = build_optimizer(parameters, recipe)
    name, schedule = cfg.recipe.optimizer.name, cfg.recipe.schedule.name
    if (
        cfg.recipe.clip_grad
        and cfg.trainer.precision == "16-mixed"
        and hasattr(optimizer, "_step_supports_amp_scaling")
    ):
        raise ConvReproError(
            f"recipe.clip_grad={cfg.recipe.clip_grad} cannot be used with a fused recipe.optimizer.name={name} at "
            "trainer.precision=16-mixed, because the optimizer itself scales the gradient; drop "
            "recipe.optimizer.args.fused, or take trainer.precision=bf16-mixed"
        )
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about the order of steps
        try:
            optimizer.step()
        except Exception as error:  # an optimizer of somebody else's may raise anything where it is not served
            raise ConvReproError(f"recipe.optimizer.name={name} cannot be used here: {_line(error)}") from error
        scheduler = build_schedule(optimizer, recipe, cfg.epochs)
        try:
            for epoch in range(min(cfg.epochs, LONGEST)):
                for rate in (group["lr"] for group in optimizer.param_groups):
                    if not (math.isfinite(rate) and rate >= 0):
                        raise ValueError(f"the learning rate of epoch {epoch + 1} is {rate}")
                if scheduler is not None:
                    step_schedule(scheduler, epoch)
        except Exception as error:
            raise ConvReproError(f"recipe.schedule.name={schedule} cannot be used here: {_line(error)}") from error


def rehearse_output(network: nn.Module, cfg: RunConfig) -> None:
    """Run the network on one image in evaluation mode; it remains as it is.

    Raises ConvReproError unless it returns logits (1, num_classes).
    """
    with counting_form(network), torch.random.fork_rng(devices=[]):
        output = network(blank_image(network, (cfg.data.channels, cfg.image_size, cfg.image_size)))
    wanted = (1, cfg.data.num_classes)
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != wanted:
        raise ConvReproError(
            f"model {cfg.model} returns {shape} for one image, but a classifier of data={cfg.data.name} returns a "
            f"tensor {wanted}: its argument num_classes is {cfg.data.num_classes}"
        )


def rehearse_batch(network: nn.Module, cfg: RunConfig, data: ImageData) -> None:
    """Run the network in training mode on one image, where a batch of the run on a device has no more than that.

    Batch norm then has one value for each channel where a feature map is one pixel, and rejects it. Larger batches
    have more values. The network and the random state remain as they are.

    Raises ConvReproError if the network cannot be trained on such a batch.
    """
    if not cfg.train or smallest_batch(data.train_examples(), cfg.loader_batch, cfg.trainer.processes) > 1:
        return
    image = torch.zeros(1, cfg.data.channels, cfg.image_size, cfg.image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(network).train()(image)
    except (ValueError, RuntimeError, AssertionError) as error:
        devices = f" on each of {cfg.trainer.processes} devices" if cfg.trainer.processes > 1 else ""
        raise ConvReproError(
            f"recipe.batch_size={cfg.recipe.batch_size} leaves a batch of one image{devices} of the "
            f"{data.train_examples()} training images, in batches of {cfg.loader_batch}, and {cfg.model} cannot be "
            f"trained on one image of {cfg.image_size} pixels ({_line(error)}); take another recipe.batch_size or "
            "budget.train_examples"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
