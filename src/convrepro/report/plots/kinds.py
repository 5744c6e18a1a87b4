"""The kinds of figures, as plain data: points, pairs and curves with their marks. The module `draw` draws them."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

PUBLISHED, RECALLED, QUOTED, OURS, PARTIAL = "published", "recalled", "quoted", "ours", "partial"
DENSE = "dense"
EXACT, OFF = "exact", "off"


@dataclass(frozen=True)
class Dot:
    """A point. `error` is the standard deviation of y over the seeds, and `mark` the kind of value."""

    x: float
    y: float
    mark: str
    error: float = 0.0


@dataclass(frozen=True)
class Pair:
    """The published value and our value of a row; either may be missing. One without a label has "" for it."""

    label: str
    published: Dot | None
    ours: Dot | None

    @property
    def labelled(self) -> Dot | None:
        """The dot beside which the label is written."""
        return self.published or self.ours


@dataclass(frozen=True)
class Figure:
    """A figure. `table` and `title` are those of its table; a figure of all tables has "" and a title of its own."""

    kind: ClassVar[str]
    table: str
    title: str

    @property
    def digest(self) -> str:
        """A digest of everything that is drawn, as sixteen hexadecimal digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Accuracy(Figure):
    """A trained metric against a cost, in a panel for each data set (`panels`: name and rows).

    `prefix` is the common beginning that is left out of the labels of the rows. Dots of the kind `DENSE` are those of
    networks with standard convolutions that differ in nothing but their widths; a line joins them.
    """

    kind = "accuracy"
    cost: str
    value: str
    prefix: str
    panels: tuple[tuple[str, tuple[Pair, ...]], ...]


@dataclass(frozen=True)
class AccuracyByBits(Accuracy):
    """A trained metric against the bits of the weights, for rows that need equally many operations."""

    kind = "bits"


@dataclass(frozen=True)
class AccuracyByTime(Accuracy):
    """A trained metric against the time of the network, as a share of the dense one's, in a panel for each mode."""

    kind = "time"


@dataclass(frozen=True)
class Trials(Figure):
    """The trials of a search: held-out top-1 in percent (y) against millions of MACs (x), and those of the front."""

    kind = "trials"
    dots: tuple[Dot, ...]
    front: tuple[tuple[str, Dot], ...]


@dataclass(frozen=True)
class AccuracyByRow(Figure):
    """A trained metric (x) row by row, for a table whose rows do not differ enough in cost."""

    kind = "accuracy"
    value: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Cost:
    """A published cost (x) and ours (y), both in units of one. `label` describes the difference, if it has a label."""

    dot: Dot
    label: str = ""


@dataclass(frozen=True)
class Costs(Figure):
    """Published costs against recomputed ones, in a panel for each quantity (operations, parameters).

    Costs that differ by at least the share `label_from` have labels.
    """

    kind = "costs"
    label_from: float
    panels: tuple[tuple[str, tuple[Cost, ...]], ...]


@dataclass(frozen=True)
class Curve:
    """The metric of a row after each epoch: mean, lowest and highest value over the seeds."""

    label: str
    seeds: int
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Curves on common axes. `title` is the common beginning that is left out of their labels."""

    title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Curves(Figure):
    """Learning curves of the runs at the paper's budget."""

    kind = "curves"
    x: ClassVar[str] = "epoch"
    y: ClassVar[str] = "top-1 (%)"
    value: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Searches(Curves):
    """The front of searches after each trial, a curve for each sampler."""

    kind = "searches"
    x = "trial"
    y = "hypervolume (%)"
