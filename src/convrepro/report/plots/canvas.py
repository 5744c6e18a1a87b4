"""Draws the parts of a picture: title and legend, axes with their scale, marks, and labels. Lengths are in points."""

from collections.abc import Iterable, Sequence
from math import floor, log10
from typing import TYPE_CHECKING, TypedDict

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from matplotlib.ticker import MaxNLocator, NullLocator

from convrepro.report.plots.kinds import Dot, Figure
from convrepro.report.plots.labels import Box, Size, Spot, leader, place_labels
from convrepro.report.plots.style import HEAD, MARK, MARKS, MUTED, SMALL, TEXT, WIDTH, WORDS

if TYPE_CHECKING:
    from matplotlib.typing import LineStyleType


class Look(TypedDict):
    """Shape, size and colours of a mark, by matplotlib's names."""

    marker: str
    ms: float
    mfc: str
    mec: str
    mew: float


def new_canvas(figure: Figure, height: float, marks: Sequence[str] = (), note: str = "") -> Canvas:
    """An empty picture with title, note and legend; `height` is the height without them, in points."""
    canvas = Canvas(figsize=(WIDTH / 72, (height + HEAD) / 72))
    FigureCanvasAgg(canvas)
    top = height + HEAD
    canvas.text(8 / WIDTH, 1 - 6 / top, figure.title, va="top", weight="bold", size=TEXT + 1)
    canvas.text(1 - 8 / WIDTH, 1 - 26.5 / top, figure.table, va="top", ha="right", size=SMALL, color=MUTED)
    handles = [_handle(mark) for mark in MARKS if mark in marks]
    legend = canvas.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(2 / WIDTH, 1 - 19 / top), ncols=4, frameon=False,
        fontsize=SMALL, handletextpad=0.2, columnspacing=1.4, borderpad=0.4,
    )  # fmt: skip
    if note:
        left = (legend.get_window_extent().x1 + 10) if handles else 8
        canvas.text(left / WIDTH, 1 - 26.5 / top, note, va="top", size=SMALL, color=MUTED)
    return canvas


def _handle(mark: str) -> Line2D:
    return Line2D([], [], linestyle="", label=WORDS[mark], **look(mark))


def look(mark: str) -> Look:
    """The look of a mark of this kind."""
    style = MARKS[mark]
    size = MARK if style["marker"] in "oX^" else MARK - 1.5
    face = "none" if style["hollow"] else style["color"]
    return {"marker": style["marker"], "ms": size, "mfc": face, "mec": style["color"], "mew": 1.2}


def add_axes(canvas: Canvas, left: float, bottom: float, right: float, top: float) -> Axes:
    """Adds axes whose frame has these distances from the edges of the picture."""
    height = height_of(canvas)
    return canvas.add_axes(
        (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    )


def stroke(canvas: Canvas, start: Spot, end: Spot, color: str, width: float, style: "LineStyleType" = "-") -> None:
    """Draws a line anywhere in the picture."""
    height = height_of(canvas)
    xs, ys = [start[0] / WIDTH, end[0] / WIDTH], [start[1] / height, end[1] / height]
    canvas.add_artist(Line2D(xs, ys, color=color, lw=width, linestyle=style, transform=canvas.transFigure))


def write_labels(canvas: Canvas, ax: Axes, labelled: Sequence[tuple[str, Dot]], obstacles: Sequence[Box]) -> None:
    """Writes the label of each dot at a free place near it, with a line to the dot where the place is distant."""
    spots = [spot_of(ax, dot.x, dot.y) for _, dot in labelled]
    sizes = [text_size(label) for label, _ in labelled]
    frame = ax.get_window_extent()
    places = place_labels(spots, sizes, obstacles, (frame.x0, frame.y0, frame.x1, frame.y1))
    for (label, _), spot, size, place in zip(labelled, spots, sizes, places, strict=True):
        lines = label.split("\n")
        for i, words in enumerate(reversed(lines)):
            y = place[1] + (i + 0.25) * size[1] / len(lines)
            canvas.text(place[0] / WIDTH, y / height_of(canvas), words, size=SMALL)
        if line := leader(spot, place, size):
            stroke(canvas, *line, MUTED, 0.5)


def spot_of(ax: Axes, x: float, y: float) -> Spot:
    """The position in the picture of a point of the axes."""
    spot = ax.transData.transform((x, y))
    return float(spot[0]), float(spot[1])


def box_of(ax: Axes, dot: Dot, size: float = MARK) -> Box:
    """The box that a dot covers with its error bar."""
    (x, low), (_, high) = spot_of(ax, dot.x, dot.y - dot.error), spot_of(ax, dot.x, dot.y + dot.error)
    return x - size / 2, low - size / 2, x + size / 2, high + size / 2


def text_size(text: str) -> Size:
    """Width and height of a small label, including letters that extend below the line."""
    lines = text.split("\n")
    font = FontProperties(size=SMALL)
    widths = [TextToPath().get_text_width_height_descent(line, font, False)[0] for line in lines]
    return float(max(widths)), SMALL * 1.2 * len(lines)


def height_of(canvas: Canvas) -> float:
    """The picture's height."""
    return float(canvas.get_size_inches()[1] * 72)


def set_scale(ax: Axes, axis: str, values: Sequence[float], *, log: bool = False) -> None:
    """Sets the limits of an axis with room around the values; a logarithmic axis also gets ticks at round values."""
    low, high = min(values), max(values)
    set_limits = getattr(ax, f"set_{axis}lim")
    if not log:
        room = 0.09 * (high - low) or 0.5
        set_limits(low - room, high + room)
        return
    getattr(ax, f"set_{axis}scale")("log")
    room = max(1.01, (high / low) ** 0.09)
    set_limits(low / room, high * room)
    getattr(ax, f"{axis}axis").set_minor_locator(NullLocator())
    ticks = _round_values(low / room, high * room)
    getattr(ax, f"set_{axis}ticks")(ticks, [_short(tick) for tick in ticks])


def set_signed_scale(ax: Axes, values: Sequence[float], least: float) -> None:
    """Sets the y axis to a logarithmic scale on both sides of zero, which is linear below `least`."""
    ax.set_yscale("symlog", linthresh=least, linscale=0.5)
    low, high = min(-2 * least, *values), max(2 * least, *values)
    ax.set_ylim(1.6 * low, 1.6 * high)
    ticks = [sign * step * 10.0**power for sign in (-1, 1) for power in range(-3, 4) for step in (1, 3)]
    shown = [0.0, *(tick for tick in ticks if abs(tick) >= least and 1.6 * low <= tick <= 1.6 * high)]
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticks(shown, [f"{tick:+g}" if tick else "0" for tick in shown])


def _round_values(low: float, high: float) -> list[float]:
    """Round values from `low` to `high` for a logarithmic axis: only powers of ten where the range is large."""
    if high < 2 * low:
        return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    decades = range(floor(log10(low)), floor(log10(high)) + 1)
    steps = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,))[min(3, int(log10(high / low)))]
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def _short(value: float) -> str:
    """A short form of a value, such as 12k for 12000."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"


def draw_marks(ax: Axes, dots: Sequence[Dot], error_along: str = "y") -> None:
    """Draws the dots, kind by kind, with their error bars along an axis.

    In an SVG file, the dots of a kind are the group `<mark>-<number of the axes>`.
    """
    panel = len(ax.figure.axes)
    for mark in MARKS:
        kind = [dot for dot in dots if dot.mark == mark]
        for i, dot in enumerate(dot for dot in kind if dot.error):
            xerr, yerr = (dot.error, None) if error_along == "x" else (None, dot.error)
            color = MARKS[mark]["color"]
            _, _, (line,) = ax.errorbar(
                dot.x, dot.y, yerr, xerr, fmt="none", zorder=2, ecolor=color, elinewidth=1, capsize=2.5
            )
            line.set_gid(f"error-{mark}-{panel}-{i}")
        if kind:
            xs, ys = [dot.x for dot in kind], [dot.y for dot in kind]
            ax.plot(xs, ys, linestyle="", zorder=3, gid=f"{mark}-{panel}", **look(mark))


def draw_links(ax: Axes, pairs: Iterable[tuple[Dot | None, Dot | None]]) -> None:
    """Draws a line between the two dots of each pair, where the pair has both."""
    for one, other in pairs:
        if one and other:
            ax.plot((one.x, other.x), (one.y, other.y), color=MUTED, lw=0.7, zorder=1)
