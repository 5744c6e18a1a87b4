"""What follows from a configuration: the batch that its budget allows, the length of its schedule, whole paths."""

import os
from collections.abc import Collection, Mapping
from typing import Any

#: Arguments of schedules that are counted in epochs.
EPOCH_ARGUMENTS = ("milestones", "step_size", "T_max", "T_0", "total_iters", "decay_epochs", "decay_milestones")


def settled(tree: dict[str, Any], written: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """A composed configuration with everything that follows from it.

    `written` is its recipe as its file has it, `given` are the keys that overrides set.

    - A batch above `budget.max_batch_size` shrinks to it, and the learning rate in proportion (Goyal et al.,
      arXiv 1706.02677, section 2.1).
    - Where `recipe.epochs` is not that of the recipe's file, the schedule's arguments that are counted in epochs follow
      it in proportion, but for those that were given themselves.
    - `~` in a path is the user's folder.
    """
    recipe, largest = dict(tree["recipe"]), tree["budget"]["max_batch_size"]
    if largest and recipe["batch_size"] > largest:
        lr = recipe["optimizer"]["lr"] * largest / recipe["batch_size"]
        recipe |= {"batch_size": largest, "optimizer": {**recipe["optimizer"], "lr": lr}}
    recipe["schedule"] = _follow(recipe, written, given)
    paths = {key: _whole(tree[key]) for key in ("runs", "data_root", "weights")}
    return tree | {"recipe": recipe, "data": tree["data"] | {"root": _whole(tree["data"]["root"])}} | paths


def shrink(arguments: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """`arguments` with those counted in epochs multiplied by `factor`, at least one epoch each."""

    def scale(value: Any) -> Any:
        return [scale(v) for v in value] if isinstance(value, list | tuple) else max(1, round(value * factor))

    return {k: scale(v) if k in EPOCH_ARGUMENTS and factor != 1 else v for k, v in arguments.items()}


def _follow(recipe: Mapping[str, Any], written: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    schedule: dict[str, Any] = recipe["schedule"]
    whole = ("recipe.schedule", "recipe.schedule.args")
    if recipe["epochs"] == written["epochs"] or any(key in given for key in whole) or not schedule["args"]:
        return schedule
    kept = {key: value for key, value in schedule["args"].items() if f"{whole[1]}.{key}" not in given}
    return schedule | {"args": schedule["args"] | shrink(kept, recipe["epochs"] / written["epochs"])}


def _whole(path: str | None) -> str | None:
    return os.path.expanduser(path) if path else path
