"""A controller that learns which choices lead to accurate networks, as a sampler for Optuna.

Zoph and Le, "Neural Architecture Search with Reinforcement Learning" (ICLR 2017, arXiv 1611.01578), train a recurrent
network that emits one choice after the other by REINFORCE (Williams, "Simple Statistical Gradient-Following Algorithms
for Connectionist Reinforcement Learning", 1992). This controller keeps their algorithm and replaces the recurrent
network by its simplest form: an independent softmax over the choices of each dimension, whose logits are the
parameters. A few dozen trials cannot train more.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

#: Step size of the gradient ascent on the logits.
RATE = 0.3
#: Weight of the past in the moving averages of the reward and of its squared deviation.
DECAY = 0.8
#: Advantages beyond this many deviations count as this many, so that no single trial decides a choice.
LIMIT = 2.0
#: The reward's deviation, as a share of 1, below which differences count as noise.
NOISE = 0.01

Logits = dict[str, NDArray[np.float64]]


class Outcome(NamedTuple):
    """What came of a trial: its choices, and its reward in [0, 1]; None for a network that breaks a constraint."""

    params: Mapping[str, str]
    reward: float | None


class Controller(BaseSampler):
    """Samples each dimension from a softmax that REINFORCE has moved towards the choices of accurate networks.

    It has no state of its own: at each question the logits are computed anew from the finished trials in the order of
    their numbers, and the draw depends on the seed and the number of the trial alone. So it survives a kill, and
    several workers ask copies of it that agree.

    Args:
        seed: with the number of a trial it determines what is drawn for that trial.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns no dimension: each is drawn on its own, as its softmax is independent of the others."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns nothing, as no dimension depends on another."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws a choice of the dimension `param_name`. Raises TypeError where it has no list of choices."""
        if not isinstance(param_distribution, CategoricalDistribution):
            raise TypeError(f"{param_name} is no list of choices; the controller has a softmax over choices only")
        choices = param_distribution.choices
        finished = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        outcomes = [Outcome(t.params, t.values[0] / 100 if t.values[0] >= 0 else None) for t in finished]
        policy = softmax(learned({param_name: [str(choice) for choice in choices]}, outcomes)[param_name])
        rng = np.random.default_rng([self.seed, trial.number, *param_name.encode()])
        return choices[int(rng.choice(len(choices), p=policy))]


def learned(dimensions: Mapping[str, Sequence[str]], outcomes: Sequence[Outcome]) -> Logits:
    """The logits of each dimension after one step of REINFORCE for each outcome, in their order.

    The gradient of the log-probability of a choice is its indicator minus the softmax. It is weighted by the advantage:
    the reward less a moving average of the rewards, in units of their moving deviation. A network that breaks a
    constraint has no reward and the advantage -1.
    """
    logits: Logits = {name: np.zeros(len(choices)) for name, choices in dimensions.items()}
    baseline: float | None = None
    variance = NOISE**2
    for params, reward in outcomes:
        if reward is None:
            advantage = -1.0
        else:
            difference = 0.0 if baseline is None else reward - baseline
            variance = DECAY * variance + (1 - DECAY) * difference**2
            advantage = float(np.clip(difference / max(variance**0.5, NOISE), -LIMIT, LIMIT))
            baseline = reward if baseline is None else DECAY * baseline + (1 - DECAY) * reward
        for name, choices in dimensions.items():
            indicator = np.array([choice == params[name] for choice in choices], dtype=np.float64)
            logits[name] += RATE * advantage * (indicator - softmax(logits[name]))
    return logits


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities that are proportional to the exponentials of the logits."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
