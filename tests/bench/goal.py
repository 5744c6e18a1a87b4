"""What a goal is, and how it is measured."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from convrepro.evidence.speed import Ratio, busy, in_turns, other_load

Step = Callable[[], Any]


@dataclass(frozen=True)
class Goal:
    """At most `bound` times what `against` takes: the ratio of two steps timed in turns.

    candidate, reference: build the step that is timed; built only when the goal is measured. rounds: at most so many,
    for steps that take long.
    """

    name: str
    against: str
    bound: float
    candidate: Callable[[], Step]
    reference: Callable[[], Step]
    rounds: int | None = None
    unit = "seconds"

    def ratio(self, rounds: int) -> Ratio:
        return in_turns(self.candidate(), self.reference(), min(rounds, self.rounds or rounds))

    def profile(self) -> dict[str, Any]:
        """JSON-ready: of one step of each, the milliseconds of torch's operations by name, the longest first."""
        steps = {"candidate": self.candidate(), "reference": self.reference()}
        return {"name": self.name, **{side: _operations(step) for side, step in steps.items()}}

    def measure(self, rounds: int) -> dict[str, Any]:
        """JSON-ready: bound, median and quartiles of the ratio, whether it is met, and the load of other processes."""
        before = busy()
        ratio = self.ratio(rounds)
        return {
            "name": self.name,
            "baseline": self.against,
            "bound": self.bound,
            "median": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
            "unit": self.unit,
            "candidate": ratio.seconds,
            "reference": ratio.baseline_seconds,
            "met": ratio.median <= self.bound,
            "other_load": other_load(before),
        }


def _operations(step: Step) -> dict[str, float]:
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total / 1000 for event in seen.key_averages()}
    return {name: round(spent[name], 2) for name in sorted(spent, key=spent.__getitem__, reverse=True)}


@dataclass(frozen=True)
class Amount(Goal):
    """As `Goal`, of two numbers that the steps return; several rounds give their spread."""

    unit: str = "bytes"

    def ratio(self, rounds: int) -> Ratio:
        candidate, reference = self.candidate(), self.reference()
        pairs = [(candidate(), reference()) for _ in range(min(rounds, self.rounds or rounds))]
        ratios = [own / other for own, other in pairs]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        return Ratio(median, low, high, own, other)


def line(measured: dict[str, Any]) -> str:
    """What a person reads of a measured goal."""
    spread = f"{measured['median']:.4f} ({measured['low']:.4f} to {measured['high']:.4f})"
    verdict = "met" if measured["met"] else "MISSED"
    amounts = f"{measured['candidate']:.4g} and {measured['reference']:.4g} {measured['unit']}"
    return (
        f"{verdict:6} {measured['name']:42} {spread}, at most {measured['bound']:.4f} of {measured['baseline']}; "
        f"{amounts}; other load {measured['other_load']}"
    )
