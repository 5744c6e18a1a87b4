"""Builds the optimizer and the schedule that a recipe names: optimizers of timm, schedules of torch or timm."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import timm.optim
import timm.scheduler
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from convrepro.errors import ConvReproError

#: Arguments of schedules that are counted in epochs; they shrink where a budget trains fewer epochs than the recipe.
EPOCH_ARGUMENTS = ("milestones", "step_size", "T_max", "T_0", "total_iters", "decay_epochs", "decay_milestones")
TIMM_SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly")


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], recipe: Mapping[str, Any], undecayed: Iterable[torch.Tensor] = ()
) -> Optimizer:
    """Builds the recipe's optimizer over `parameters`, with weight decay on all of them except those in `undecayed`.

    The parameters in `undecayed` form a second parameter group; where it is empty, there is one group.

    Raises ConvReproError for a name that timm does not know, or an argument that the optimizer rejects.
    """
    wanted = recipe["optimizer"]
    name = wanted["name"]
    known = timm.optim.list_optimizers()
    if name.removeprefix("lookahead_") not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise ConvReproError(f"recipe.optimizer.name={name!r} is not an optimizer of timm; near: {', '.join(near)}")
    arguments = dict(wanted["args"] or {})
    groups: list[Any] = list(parameters)
    spared = {id(p) for p in undecayed}
    if spared:
        rest = [p for p in groups if id(p) in spared]
        groups = [{"params": [p for p in groups if id(p) not in spared]}, {"params": rest, "weight_decay": 0.0}]
    if name == "sgd" and not wanted["nesterov"]:
        name = "momentum"  # timm's "sgd" has Nesterov's momentum; "momentum" is SGD without it
    try:
        return timm.optim.create_optimizer_v2(
            groups,
            opt=name,
            lr=wanted["lr"],
            momentum=wanted["momentum"],
            weight_decay=wanted["weight_decay"],
            **arguments,
        )
    except (TypeError, ValueError) as error:
        raise ConvReproError(f"recipe.optimizer.name={wanted['name']}: {error}") from error


def build_schedule(optimizer: Optimizer, recipe: Mapping[str, Any], epochs: int) -> Any | None:
    """Builds the recipe's schedule, a torch `LRScheduler` or a timm `Scheduler`; returns None for `constant`.

    The schedule is stepped once an epoch. Where `epochs` is less than the recipe's, arguments that are counted in
    epochs shrink in proportion. Raises ConvReproError for an unknown name or argument.
    """
    name = recipe["schedule"]["name"]
    arguments = shrink(dict(recipe["schedule"].get("args") or {}), epochs / recipe["epochs"])
    torch_schedule = getattr(torch.optim.lr_scheduler, name, None)
    try:
        if name == "constant":
            return None
        if name in TIMM_SCHEDULES:
            return timm.scheduler.create_scheduler_v2(optimizer, sched=name, num_epochs=epochs, **arguments)[0]
        if inspect.isclass(torch_schedule) and issubclass(torch_schedule, LRScheduler):
            return torch_schedule(optimizer, **arguments)
    except (TypeError, ValueError) as error:
        raise ConvReproError(f"recipe.schedule={name}: {error}") from error
    raise ConvReproError(
        f"recipe.schedule.name={name!r} is unknown; valid: constant, a class of torch.optim.lr_scheduler "
        f"(such as MultiStepLR), or one of timm's: {', '.join(TIMM_SCHEDULES)}"
    )


def shrink(arguments: dict[str, Any], factor: float) -> dict[str, Any]:
    """Returns `arguments` with those that are counted in epochs multiplied by `factor`, to at least one epoch."""

    def scale(value: Any) -> Any:
        return [scale(v) for v in value] if isinstance(value, (list, tuple)) else max(1, round(value * factor))

    return {k: scale(v) if k in EPOCH_ARGUMENTS and factor != 1 else v for k, v in arguments.items()}
