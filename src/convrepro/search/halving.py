"""Early stopping by asynchronous successive halving.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020, arXiv 1810.05934). At a rung, an epoch
that is a power of the reduction factor, a trial goes on if it is among the best share 1 / factor of the trials that
have reached the rung by then. Nothing waits for a rung to fill: the first trial to arrive goes on. This is the variant
that stops trials and does not resume them.
"""

from collections.abc import Sequence

#: The reduction factor.
FACTOR = 2


def is_rung(epoch: int, epochs: int) -> bool:
    """Whether trials are compared after this epoch, counted from 1: after 1, 2, 4, ... but not after the last."""
    return epoch < epochs and epoch & (epoch - 1) == 0


def survives(accuracy: float, others: Sequence[float]) -> bool:
    """Whether a trial goes on beyond a rung, where `others` have or had these accuracies at the same epoch."""
    better = sum(other > accuracy for other in others)
    return better < max(1, (len(others) + 1) // FACTOR)
