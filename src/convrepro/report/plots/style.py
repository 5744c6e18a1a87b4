"""The style of figures. Colour-blind readers can distinguish the colours (Okabe and Ito, 2008), and the marks differ in
shape as well.
"""

from typing import TYPE_CHECKING, Any, TypedDict

from convrepro.report.plots.kinds import DENSE, EXACT, OFF, OURS, PARTIAL, PUBLISHED, QUOTED, RECALLED
from convrepro.report.plots.speeds import INFERENCE, TRAINING

if TYPE_CHECKING:
    from matplotlib.typing import LineStyleType, RcKeyType


class MarkStyle(TypedDict):
    """Shape and colour of a mark, and whether it is hollow."""

    marker: str
    color: str
    hollow: bool


INK, PAPER, FAINT, MUTED = "#1f2328", "#ffffff", "#d0d7de", "#6e7781"
"""Colours of text and frame, background, grid, and less important parts; a page may replace them by its own."""
BLUE, VERMILLION, GREEN, ORANGE, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7"

WIDTH = 622.5
"""The width in points, which is 830 pixels in a browser, the width of a README."""
TEXT, SMALL = 9, 8
"""Sizes of letters in points."""
LINE = 13.0
"""The height of a line of text in points."""
HEAD = 44.0
"""The height of title and legend in points."""
MARK = 7.0
"""The size of a mark in points."""

MARKS: dict[str, MarkStyle] = {
    EXACT: {"marker": "o", "color": BLUE, "hollow": False},
    DENSE: {"marker": "o", "color": MUTED, "hollow": False},
    OURS: {"marker": "o", "color": VERMILLION, "hollow": False},
    PARTIAL: {"marker": "^", "color": ORANGE, "hollow": False},
    PUBLISHED: {"marker": "o", "color": BLUE, "hollow": True},
    QUOTED: {"marker": "s", "color": GREEN, "hollow": True},
    RECALLED: {"marker": "D", "color": MUTED, "hollow": True},
    OFF: {"marker": "X", "color": VERMILLION, "hollow": False},
    TRAINING: {"marker": "o", "color": VERMILLION, "hollow": False},
    INFERENCE: {"marker": "s", "color": BLUE, "hollow": True},
}
"""The kinds of points in the order in which they are drawn, the topmost last."""
WORDS = {
    PUBLISHED: "published",
    RECALLED: "published, from recollection (~)",
    QUOTED: "published, not run here",
    OURS: "ours, mean ± std over seeds",
    PARTIAL: "ours, seeds missing",
    DENSE: "ours, standard convolutions by width",
    EXACT: "same digits as published",
    OFF: "differs",
    TRAINING: "training step",
    INFERENCE: "inference",
}
LINES: "tuple[tuple[str, LineStyleType], ...]" = (
    (BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (ORANGE, ":"), (PURPLE, (0, (5, 1))), (INK, (0, (3, 1, 1, 1))),
)  # fmt: skip
"""Colour and dashes of the curves in a panel."""

STYLE: "dict[RcKeyType, Any]" = {
    "svg.hashsalt": "convrepro",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": TEXT,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.minor.bottom": False,
    "ytick.minor.left": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.dpi": 72,
}
