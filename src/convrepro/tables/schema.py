"""What a table's YAML may say, as data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from convrepro.config.overrides import settings
from convrepro.errors import ConvReproError

UNITS = {"1": 1, "k": 10**3, "M": 10**6, "G": 10**9}

COUNTING_RULES = (
    *("macs", "conv_fc", "conv_only", "two_per_mac", "fvcore", "hetconv_scaled_bias", "senet", "senet_biases"),
    *("params", "params_no_norm", "weights", "conv_weights", "params_no_fc", "params_and_buffers"),
    *("multiplications", "shifts", "weight_bits"),
)
"""Names of the rules by which papers count (see `complexity.rules`)."""

RUN_METRICS = ("top1", "top5", "loss")
"""What a run measures in each epoch."""

CAUSES = {
    "misprint": "the printed digits are wrong",
    "convention": "another counting rule or rounding than the table's gives the printed digits",
    "unexplained": "nothing that is public leads to the printed digits",
}
"""Why a published static value is not what its table's rule counts."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which table of which paper; `table` is its number, or words where the number is not known."""

    paper: str
    table: int | str
    arxiv: str = ""
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A value that the paper prints, with its source.

    `found`: read in the source named; `derived`: exact arithmetic reproduces the printed digits; `measured`: by this
    project, in the runs that the source names, which are none of the table's own; `recalled`: not verified, shown with
    a mark and never deciding a verdict. An unknown value is None, never a guess. The digits are those printed, closing
    zeros included.

    `cause` (of `CAUSES`) and `erratum`, the arithmetic, explain a static value that differs from our count.
    """

    value: Decimal | None
    source: str = ""
    confidence: str = ""
    note: str = ""
    cause: str = ""
    erratum: str = ""

    @property
    def decides(self) -> bool:
        return self.value is not None and self.confidence != "recalled"

    @property
    def exact(self) -> Fraction:
        """The value as an exact number; raises ValueError where it is not known."""
        if self.value is None:
            raise ValueError("a published value that is not known has no number")
        return Fraction(self.value)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column. `decimals`: digits printed after the point; `count`: the counting rule, "" where none counts it."""

    name: str
    unit: str
    decimals: int = 2
    count: str = ""


@dataclass(frozen=True, kw_only=True)
class Trained(Metric):
    """Measured by running: `run_metric` of the `last` (or `best`) epoch, or 100 minus it (`complement`: an error).

    Reproduced when the mean over the table's seeds is within `tol` of the published value; `why` gives the reason for
    the tolerance, which is set before the first run.
    """

    tol: Decimal
    why: str
    run_metric: str = ""
    epoch: str = "last"
    complement: bool = False


@dataclass(frozen=True, kw_only=True)
class Counted(Metric):
    """Static: the counting rule `count`, in `unit`, cut (`floor`) or rounded half up at `decimals`."""

    decimals: int
    printed: str
    paper_unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Relative(Metric, ABC):
    """Static: a percentage, x being a counted metric's figure, exact or (`from: printed`) as printed."""

    decimals: int
    printed: str
    base_row: str
    from_: str = "exact"

    @property
    @abstractmethod
    def of(self) -> str:
        """Name of the counted metric."""


@dataclass(frozen=True, kw_only=True)
class Reduction(Relative):
    """100 (1 - x / x of `base_row`)."""

    reduction_of: str

    @property
    def of(self) -> str:
        return self.reduction_of


@dataclass(frozen=True, kw_only=True)
class Share(Relative):
    """100 x / x of `base_row`."""

    share_of: str

    @property
    def of(self) -> str:
        return self.share_of


@dataclass(frozen=True, kw_only=True)
class NotMeasured(Metric):
    """Shown as published only, such as the latency on somebody's phone; `not_measured` says why."""

    not_measured: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a list of Hydra overrides, or `quoted` from other work (shown, not run).

    `weights_from`: the row whose trained checkpoint of the same seed this one starts from.
    `same_as`: `paper/table/row` whose runs these are too, so that nothing is trained twice.
    `layers`: patterns (as of file names, spaces between) of the layers that the row's counts are of; empty for the
    whole network. Such a row is not trained.
    """

    id: str
    label: str
    overrides: tuple[str, ...] = ()
    published: Mapping[str, Published]
    quoted: bool = False
    weights_from: str = ""
    same_as: str = ""
    layers: str = ""
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the table is for: `min_delta` <= metric(left) - metric(right) <= `max_delta`, in the metric's unit.

    Without `right`, the bounds are those of metric(left) itself. `contradicted` tells of a claim that the paper makes
    although its own values fail it.
    """

    text: str
    left: str
    metric: str
    right: str = ""
    min_delta: Decimal | None = None
    max_delta: Decimal | None = None
    contradicted: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a paper; `name` is `paper/table`, as its file is called."""

    name: str
    title: str
    source: Source
    question: str
    base: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Metric]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    deviations: tuple[str, ...] = ()
    notes: str = ""

    @property
    def to_run(self) -> tuple[Row, ...]:
        """The rows that have runs of their own, where anything is measured by running: not quoted, not run as another
        table's row, not a part of a network."""
        trained = any(isinstance(m, Trained) for m in self.metrics.values())
        return tuple(r for r in self.rows if trained and not (r.quoted or r.same_as or r.layers))

    def row(self, row_id: str) -> Row:
        for row in self.rows:
            if row.id == row_id:
                return row
        raise ConvReproError(f"{self.name} has no row {row_id!r}; valid: {', '.join(r.id for r in self.rows)}")

    def overrides(self, row: Row) -> tuple[str, ...]:
        """The whole override list of a row: the table's base, then the row's own."""
        return (*self.base, *row.overrides)

    def settings(self, row: Row) -> dict[str, str]:
        """What the row's overrides come to: key -> value, the last one winning as in Hydra."""
        return settings(self.overrides(row))
