"""The work of a search: asks for networks, sets those aside that break a constraint, and trains the others.

Each trial is an ordinary run of `training.run` on a part of the training images, evaluated on the part that is held
out. No test image is read.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrepro.config.compose import compose_config
from convrepro.config.overrides import quoted
from convrepro.config.schema import RunConfig
from convrepro.errors import Busy, ConvReproError, Interrupted, Stopped
from convrepro.runs import interruption
from convrepro.runs.folder import ERROR
from convrepro.runs.result import Result
from convrepro.search import halving
from convrepro.search.latency import Latency
from convrepro.search.samplers import propose
from convrepro.search.space import Cost, Space
from convrepro.search.study import Study, Taken
from convrepro.search.trial import State, Trial, now, worker
from convrepro.training.data import image_data
from convrepro.training.identity import identity_of, protocol_of
from convrepro.training.run import check, run

#: Networks in a row that may break a constraint before a search gives up.
TRIES = 200
#: Trials in a row that may fail before a search gives up: then it is not the network's fault.
FAILURES = 5
#: Seconds between two looks at a run that another process trains.
PAUSE = 0.5
#: W&B's variable for the group of a run.
GROUP = "WANDB_RUN_GROUP"

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """The bounds of a search: what a network may have at most of MACs, parameters and time; None for no bound."""

    macs: int | None = None
    params: int | None = None
    latency: Latency | None = None

    def excess(self, cost: Cost) -> float:
        """By which share of a bound the cost is beyond it; of two bounds the larger share; 0 within both. The bound on
        the time is no part of it.
        """
        bounds = ((cost.macs, self.macs), (cost.params, self.params))
        return max(0.0, *(value / bound - 1 for value, bound in bounds if bound)) if any(self.bounds) else 0.0

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        return self.macs, self.params


def limit(option: str, given: float | None, dense: int, least: int) -> int | None:
    """The bound that an option gives: a number up to 1 is a share of the dense network's cost.

    Raises ConvReproError for a number that is not positive, and for a bound below what the space can reach.
    """
    if given is None:
        return None
    if not 0 < given < float("inf"):
        raise ConvReproError(
            f"{option} {given:g} must be above 0: up to 1 a share of the dense network, above it a number"
        )
    bound = int(given * dense) if given <= 1 else int(given)
    if bound < least:
        raise ConvReproError(
            f"{option} {given:g} is {bound:,}, which no network of the space reaches; the smallest has {least:,} "
            f"({least / dense:.4f} of the dense network's {dense:,})"
        )
    return bound


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes:
        extra: overrides that say how runs are executed.
        runs: the folder of the run folders.
        seed: of the sampler and of the runs.
        holdout: the share of the training images on which trials are evaluated.
        halves: whether trials that are not among the best half at a rung end there (see `halving`).
    """

    name: str
    space: Space
    limits: Limits
    sampler: str
    seed: int
    budget: str
    holdout: float
    halves: bool
    extra: tuple[str, ...]
    runs: Path

    @property
    def study(self) -> Study:
        return Study(self.runs / "searches" / self.name)

    def overrides(self, params: Mapping[str, str]) -> list[str]:
        """The overrides of the run of a trial."""
        return [
            *self.space.base,
            *self.space.overrides(params),
            *self.extra,
            f"seed={self.seed}",
            f"budget={self.budget}",
            f"budget.holdout={self.holdout}",
            f"runs={quoted(self.runs)}",
        ]

    @property
    def plain(self) -> RunConfig:
        """The configuration of the run of a trial with the first choice of each dimension."""
        return compose_config(self.overrides({name: choices[0] for name, choices in self.space.dimensions.items()}))

    @property
    def settings(self) -> dict[str, Any]:
        """What is searched, for a reader."""
        latency = self.limits.latency
        return {
            "model": self.space.network.model,
            "data": self.space.network.data.name,
            "space": self.space.definition.model_dump(),
            "max_macs": self.limits.macs,
            "max_params": self.limits.params,
            **({"max_latency": str(latency)} if latency else {}),
            "sampler": self.sampler,
            "seed": self.seed,
            "budget": self.budget,
            "holdout": self.holdout,
            "halving": self.halves,
        }

    def open(self) -> None:
        """Writes what is searched, where the study is new.

        Raises ConvReproError where the data is missing or its training images are too few to hold some out, and where
        the study of this name is another search.
        """
        check(self.plain)
        image_data(self.plain).setup("fit")
        self.study.open({"schema": 1, "protocol": protocol_of(self.plain).digest, "settings": self.settings})


def work(search: Search, total: int, echo: Echo) -> None:
    """Trains trials until the study has `total` of them.

    Networks that break a constraint are recorded and do not count. Trials that others are at are not waited for.
    Raises ConvReproError where TRIES networks in a row break a constraint, and where FAILURES trials in a row fail.
    """
    study, group = search.study, os.environ.get(GROUP)
    os.environ[GROUP] = group or search.name
    try:
        while True:
            trials = study.trials()
            _check(search, trials)
            try:
                if left := study.abandoned(trials):
                    with study.taken_over(left[0]) as trial:
                        echo(f"trial {trial['number']} continues; its worker ({trial['worker']}) is gone")
                        _train(search, {**trial, "worker": worker()}, trials, echo)
                    continue
                if len(counted(trials)) >= total:
                    return
                _next(search, trials, total, echo)
            except Taken:
                continue
    finally:
        if group is None:
            del os.environ[GROUP]


def counted(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that count: all but those that break a constraint."""
    return [trial for trial in trials if trial["state"] != "infeasible"]


def _check(search: Search, trials: Sequence[Trial]) -> None:
    """Raises ConvReproError where it makes no sense to go on."""
    if request := interruption.requested():
        raise Interrupted(
            "interrupted between two trials; the same command continues the search", requeue=request == "requeue"
        )
    last = [trial["state"] for trial in trials[-TRIES:]]
    if len(last) == TRIES and set(last) == {"infeasible"}:
        named = zip(("MACs", "parameters"), search.limits.bounds, strict=True)
        bounds = [f"{of} at most {bound:,}" for of, bound in named if bound]
        bounds += [f"at most {search.limits.latency}"] if search.limits.latency else []
        least = search.space.least
        raise ConvReproError(
            f"the last {TRIES} networks that --sampler {search.sampler} proposed break a constraint "
            f"({', '.join(bounds)}; the smallest network has {least.macs:,} MACs or {least.params:,} parameters); "
            "allow more, take --sampler nsga2, or a space with cheaper choices"
        )
    recent = [trial for trial in counted(trials) if trial["state"] != "running"][-FAILURES:]
    if len(recent) == FAILURES and all(trial["state"] == "failed" for trial in recent):
        raise ConvReproError(f"the last {FAILURES} trials failed, the last one so: {recent[-1].get('reason')}")


def _next(search: Search, trials: list[Trial], total: int, echo: Echo) -> None:
    """Proposes and claims one trial; trains it, unless it breaks a constraint. Raises Taken as `claimed` does."""
    params, attributes = propose(search.sampler, search.seed, search.space.dimensions, trials)
    cost = search.space.cost(params)
    excess = search.limits.excess(cost)
    trial: Trial = {
        "number": len(trials),
        "state": "infeasible" if excess else "running",
        "params": params,
        "system_attrs": attributes,
        "macs": cost.macs,
        "params_count": cost.params,
        "excess": excess,
        "accuracies": {},
        "top1": None,
        "worker": worker(),
        "started": now(),
        "ended": now() if excess else None,
    }
    if excess:
        trial["reason"] = f"it is beyond a constraint by {100 * excess:.1f} % of the bound"
    with search.study.claimed(trial):
        if not excess:
            place = f"[{len(counted(trials)) + 1}/{total}] trial {trial['number']}"
            echo(f"{place}: {cost.macs / 1e6:.2f} M MACs, {_short(params)}")
            _train(search, trial, trials, echo)


def _short(params: Mapping[str, str]) -> str:
    """The choices in a line: how many dimensions have each."""
    chosen = list(params.values())
    return ", ".join(f"{chosen.count(choice)} x {choice}" for choice in dict.fromkeys(chosen))


def _train(search: Search, trial: Trial, trials: Sequence[Trial], echo: Echo) -> None:
    """Trains the network of a trial that this worker holds, and writes what came of it."""
    if twin := _twin(trial, trials):
        echo(f"  trial {twin['number']} is the same network; it is not trained again")
        search.study.write(_copied(trial, twin))
        return
    words = search.overrides(trial["params"])
    try:
        if reason := _too_slow(search, trial, trials):
            echo(f"  not trained: {reason}")
            search.study.write(ended(trial, "infeasible", reason))
            return
        cfg = compose_config(words)
        trial["run"] = str(identity_of(cfg, words, protocol_of(cfg)).folder(Path()))
        search.study.write(trial)
        result = _run(search, trial, words, cfg.epochs, echo)
    except Stopped as stop:
        echo(f"  stopped: {stop}")
        outcome = ended(trial, "stopped", reason=str(stop))
    except Interrupted:
        raise
    except ConvReproError as error:
        outcome = ended(trial, "failed", reason=str(error))
    except Exception as error:
        where = f" (traceback in {search.runs / trial['run'] / ERROR})" if "run" in trial else ""
        outcome = ended(trial, "failed", reason=f"{type(error).__name__}: {error}{where}")
    else:
        trial["accuracies"] = {str(int(line["epoch"] or 0) + 1): line["val/top1"] or 0.0 for line in result["history"]}
        trial["top1"] = result["metrics"]["last"]["top1"]
        outcome = ended(trial, "complete")
    if outcome["state"] == "failed":
        echo(f"  failed: {outcome.get('reason')}")
    search.study.write(outcome)


def _too_slow(search: Search, trial: Trial, trials: Sequence[Trial]) -> str:
    """Why the network is beyond the bound on its time, which is measured once for each network; empty within it."""
    if not (bound := search.limits.latency):
        return ""
    if "latency" not in trial:
        known = (t["latency"] for t in trials if t["params"] == trial["params"] and "latency" in t)
        trial["latency"] = next(known, None) or bound.of(search.space, trial["params"])
        search.study.write(trial)
    trial["excess"] = max(0.0, trial["latency"] / bound.share - 1)
    return f"it takes {trial['latency']:.3f} of the dense network's time" if trial["excess"] else ""


def ended(trial: Trial, state: State, reason: str = "") -> Trial:
    """The trial as it is once it has ended."""
    whole: Trial = {**trial, "state": state, "ended": now()}
    if reason:
        whole["reason"] = reason
    return whole


def _twin(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The earlier trial of the same network that has an accuracy, if there is one."""
    same = (t for t in trials if t["params"] == trial["params"] and t["state"] in ("complete", "stopped"))
    return next((t for t in same if t["number"] < trial["number"] and "same_as" not in t), None)


def _copied(trial: Trial, twin: Trial) -> Trial:
    copied: Trial = {**trial, "accuracies": twin["accuracies"], "top1": twin["top1"], "same_as": twin["number"]}
    if "run" in twin:
        copied["run"] = twin["run"]
    if "latency" in twin:
        copied["latency"] = twin["latency"]
    return ended(copied, twin["state"], twin.get("reason", ""))


def _run(search: Search, trial: Trial, words: list[str], epochs: int, echo: Echo) -> Result:
    """Trains the run of a trial; waits where another process trains the same run."""

    def watch(line: Mapping[str, float]) -> None:
        epoch = int(line["epoch"]) + 1
        trial["accuracies"][str(epoch)] = trial["top1"] = line["val/top1"]
        search.study.write(trial)
        if search.halves and halving.is_rung(epoch, epochs):
            others = [t["accuracies"] for t in search.study.trials() if t["params"] != trial["params"]]
            reached = [accuracies[str(epoch)] for accuracies in others if str(epoch) in accuracies]
            if not halving.survives(line["val/top1"], reached):
                raise Stopped(f"after epoch {epoch} it was not among the best half of {len(reached) + 1} trials")

    said = False
    while True:
        try:
            return run(compose_config(words), words, lambda line: echo(f"  {line}"), watch=watch)
        except Busy as busy:
            if request := interruption.requested():
                raise Interrupted("interrupted while it waited for a run", requeue=request == "requeue") from busy
            if not said:
                echo(f"  waits: {busy}")
            said = True
            time.sleep(PAUSE)
