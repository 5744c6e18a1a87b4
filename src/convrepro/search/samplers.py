"""Which network a search tries next: Optuna's samplers and the controller, asked through a study in memory.

The study on disk is ours (`search.study`). For each question it is put into a fresh study of Optuna, so that an answer
depends on the trials and the seed alone, and on nothing that a kill could lose. Optuna's own storages are not used.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from convrepro.search.controller import Controller
from convrepro.search.trial import Trial

#: Networks in a generation of NSGA-II. Optuna's 50 would leave a search of 60 trials with one generation.
POPULATION = 10

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "controller": Controller,
}


def propose(
    sampler: str, seed: int, dimensions: Mapping[str, Sequence[str]], trials: Sequence[Trial]
) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices of the next trial, whose number is that of `trials`, and what the sampler keeps with it.

    `trials` are all trials so far, in the order of their numbers.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own = seed if sampler == "controller" else int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    space: dict[str, BaseDistribution] = {name: CategoricalDistribution(tuple(c)) for name, c in dimensions.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is experimental in one of the versions, and divisions inside TPE
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=SAMPLERS[sampler](own))
        for trial in trials if sampler != "random" else ():
            study.add_trial(_frozen(trial, space))
        asked = study.ask(space)
        kept = study.get_trials(deepcopy=False)[-1].system_attrs
    return {name: str(asked.params[name]) for name in dimensions}, dict(kept)


def _frozen(trial: Trial, space: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna has it: held-out accuracy in percent and MACs.

    One that was stopped has the accuracy that it had then. One that breaks a constraint has a negative accuracy, the
    lower the farther it is beyond the bound, so that every network that was trained dominates it.
    """
    state, values = TrialState.COMPLETE, [float(trial["top1"] or 0.0), float(trial["macs"])]
    if trial["state"] == "infeasible":
        values = [-100 * trial["excess"], trial["macs"] * 1e6]
    elif trial["state"] == "running":
        state = TrialState.RUNNING
    elif trial["state"] == "failed":
        state = TrialState.FAIL
    return optuna.trial.create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=trial["params"],
        distributions=space,
        system_attrs=trial["system_attrs"],
    )
