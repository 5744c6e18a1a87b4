"""The controller: it learns what is rewarded, by the published update, and keeps nothing that a kill could lose."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from convrepro.search.controller import DECAY, LIMIT, NOISE, RATE, Controller, Outcome, learned, softmax
from convrepro.search.samplers import propose
from convrepro.search.trial import Trial
from support.bandit import CHOICES, WORTH, finished

pytestmark = pytest.mark.unit


def bandit(sampler: str, seed: int, trials: int) -> list[float]:
    """Accuracies of a search in which each layer's choice has its own worth."""
    done: list[Trial] = []
    for number in range(trials):
        params, attributes = propose(sampler, seed, CHOICES, done)
        top1 = 100 * sum(WORTH[choice] for choice in params.values()) / len(params)
        done.append(finished(number, params, top1, attributes))
    return [float(trial["top1"] or 0) for trial in done]


def test_it_learns_a_bandit_that_random_choices_do_not():
    seeds = range(3)
    late = [np.mean(bandit("controller", seed, 50)[-10:]) for seed in seeds]
    chance = [np.mean(bandit("random", seed, 50)[-10:]) for seed in seeds]
    assert min(late) > max(chance) + 15, (late, chance)


def test_a_seed_determines_it():
    assert bandit("controller", 5, 12) == bandit("controller", 5, 12)
    assert bandit("controller", 5, 12) != bandit("controller", 6, 12)


def test_a_step_is_that_of_reinforce():
    first, second = Outcome({"a": "x"}, 0.5), Outcome({"a": "y"}, 0.51)
    (logits,) = learned({"a": ("x", "y", "z")}, [first, second]).values()
    deviation = max((DECAY * NOISE**2 + (1 - DECAY) * 0.01**2) ** 0.5, NOISE)
    expected = RATE * (0.01 / deviation) * (np.array([0, 1, 0]) - 1 / 3)  # the first reward is the baseline
    assert logits == pytest.approx(expected)
    assert softmax(logits).sum() == pytest.approx(1)


def test_one_trial_cannot_decide_a_choice():
    outcomes = [Outcome({"a": "x"}, 0.1), Outcome({"a": "y"}, 0.9)]
    (logits,) = learned({"a": ("x", "y")}, outcomes).values()
    assert abs(logits).max() <= RATE * LIMIT


def test_what_breaks_a_constraint_becomes_less_likely():
    (logits,) = learned({"a": ("x", "y")}, [Outcome({"a": "x"}, None)] * 3).values()
    assert softmax(logits)[0] < 0.35


def test_a_dimension_without_choices_is_refused():
    study = optuna.create_study(sampler=Controller(0))
    trial = study.ask({"a": CategoricalDistribution(("x",))})
    with pytest.raises(TypeError, match="no list of choices"):
        Controller(0).sample_independent(study, study.trials[trial.number], "b", object())
