"""The samplers: each gives a valid network, and the same one whether or not there was an interruption before it."""

import json

import pytest

from convrepro.search.samplers import POPULATION, SAMPLERS, propose
from convrepro.search.trial import Trial
from support.bandit import CHOICES, WORTH, finished

pytestmark = pytest.mark.unit


def searched(sampler: str, number: int, seed: int = 1, known: list[Trial] | None = None) -> list[Trial]:
    """A search whose trials pass through JSON after each, as through a disk. It continues those `known`."""
    done = list(known or [])
    while len(done) < number:
        params, attributes = propose(sampler, seed, CHOICES, done)
        top1 = 100 * sum(WORTH[choice] for choice in params.values()) / len(params)
        macs = sum(7 * len(choice) for choice in params.values())
        done.append(json.loads(json.dumps(finished(len(done), params, top1, attributes, macs))))
    return done


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_continued_has_the_trials_of_one_that_was_not_interrupted(sampler):
    whole = searched(sampler, 3 * POPULATION)
    for cut in (1, POPULATION, 2 * POPULATION + 3):
        assert searched(sampler, 3 * POPULATION, known=whole[:cut]) == whole
    assert all(trial["params"].keys() == CHOICES.keys() for trial in whole)
    assert all(choice in CHOICES[name] for trial in whole for name, choice in trial["params"].items())
    assert len({json.dumps(trial["params"]) for trial in whole}) > POPULATION


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "controller"])
def test_it_finds_better_networks_than_it_began_with(sampler):
    done = [float(trial["top1"] or 0) for trial in searched(sampler, 60)]
    assert sum(done[-15:]) > sum(done[:15]) + 15


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("state", ["running", "failed", "stopped", "infeasible"])
def test_it_goes_on_whatever_came_of_the_trials_before(sampler, state):
    done = searched(sampler, POPULATION + 2)
    done[3]["state"] = state
    if state == "infeasible":
        done[3] |= {"excess": 0.5, "top1": None}
    if state in ("running", "failed"):
        done[3]["top1"] = None
    params, _ = propose(sampler, 1, CHOICES, done)
    assert all(choice in CHOICES[name] for name, choice in params.items())


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "controller"])
def test_it_learns_to_keep_a_constraint(sampler):
    """Two of four choices break the constraint, so that chance finds a network within it once in sixteen trials."""
    done: list[Trial] = []
    while len(done) < 80:
        params, attributes = propose(sampler, 0, CHOICES, done)
        trial = finished(len(done), params, 50.0, attributes)
        if excess := sum(WORTH[choice] < 0.5 for choice in params.values()):
            trial |= {"state": "infeasible", "excess": float(excess), "top1": None}
        done.append(trial)
    assert sum(trial["state"] == "complete" for trial in done[-20:]) >= 8
