"""The figure of speeds as plain data: time against multiply-accumulates, both as shares of the baseline's."""

from collections.abc import Iterable
from dataclasses import dataclass

from convrepro.evidence.speed_record import OPERATORS, Speed
from convrepro.report.plots.kinds import Dot, Figure

TRAINING, INFERENCE = "training", "inference"
MARK_OF = {"train": TRAINING, "inference": INFERENCE}


@dataclass(frozen=True)
class Speeds(Figure):
    """A label and dots for each operator: x is its share of the dense network's MACs, y its share of the time."""

    kind = "speed"
    points: tuple[tuple[str, tuple[Dot, ...]], ...]


def speeds(found: Iterable[Speed], title: str) -> Speeds | None:
    """The figure of the operators; None where no operator was measured."""
    points = tuple(
        (
            speed.name,
            tuple(
                Dot(round(speed.macs_ratio, 4), round(speed.ratios[mode].median, 4), mark)
                for mode, mark in MARK_OF.items()
                if mode in speed.ratios
            ),
        )
        for speed in found
        if speed.group == OPERATORS and speed.ratios.keys() & MARK_OF.keys()
    )
    return Speeds("", title, points) if points else None
