"""Draws figures with matplotlib. The same figure gives the same bytes."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from convrepro.report.plots.canvas import (
    add_axes,
    box_of,
    draw_links,
    draw_marks,
    height_of,
    new_canvas,
    set_scale,
    set_signed_scale,
    spot_of,
    stroke,
    text_size,
    write_labels,
)
from convrepro.report.plots.kinds import (
    DENSE,
    EXACT,
    OFF,
    RECALLED,
    Accuracy,
    AccuracyByRow,
    Cost,
    Costs,
    Curve,
    Curves,
    Dot,
    Figure,
    Pair,
    Panel,
    Searches,
    Trials,
)
from convrepro.report.plots.labels import spread
from convrepro.report.plots.speeds import TRAINING, Speeds
from convrepro.report.plots.style import HEAD, LINE, LINES, MUTED, SMALL, STYLE, TEXT, VERMILLION, WIDTH

#: Percent from which differences of costs are drawn on a logarithmic scale.
LEAST = 0.1


def svg(figure: Figure) -> str:
    """The figure as SVG. Texts remain texts; the metadata contain title and digest, and no date."""
    facts = {"Title": describe(figure), "Identifier": figure.digest, "Date": None, "Creator": None, "Type": None}
    return _saved(figure, "svg", metadata=facts).decode()


def png(figure: Figure) -> bytes:
    """The figure as PNG, twice as wide as a README."""
    return _saved(figure, "png", dpi=192, metadata={"Title": describe(figure), "Software": None})


def describe(figure: Figure) -> str:
    """A sentence that describes the figure for readers who cannot see it."""
    where = figure.table or "all tables"
    match figure:
        case Accuracy():
            rows = sum(len(pairs) for _, pairs in figure.panels)
            return f"{where}: {figure.value} against {figure.cost}, {rows} rows"
        case Trials():
            return (
                f"{where}: held-out top-1 against MACs of {len(figure.dots)} trials, {len(figure.front)} on the front"
            )
        case AccuracyByRow():
            whose = "published and own" if any(pair.published for pair in figure.pairs) else "own"
            return f"{where}: {whose} {figure.value}, {len(figure.pairs)} rows"
        case Costs():
            marks = [point.dot.mark for _, points in figure.panels for point in points]
            return f"{where}: {len(marks)} published costs against recomputed ones; {marks.count(OFF)} differ"
        case Searches():
            return f"{figure.title}: {figure.value} after each trial, {len(figure.panels[0].curves)} samplers"
        case Curves():
            rows = sum(len(panel.curves) for panel in figure.panels)
            return f"{where}: learning curves of {rows} rows, {figure.value}"
        case Speeds():
            slower = sum(any(dot.y > 1 for dot in dots) for _, dots in figure.points)
            return f"time against MACs of {len(figure.points)} operators; {slower} are slower than what they replace"
    raise TypeError(f"{type(figure).__name__} is not a kind of figure that can be drawn")


def _saved(
    figure: Figure, form: str, metadata: Mapping[str, str | None], dpi: float | Literal["figure"] = "figure"
) -> bytes:
    with matplotlib.rc_context(STYLE):
        stream = io.BytesIO()
        draw(figure).savefig(stream, format=form, metadata=metadata, dpi=dpi)
        return stream.getvalue()


def draw(figure: Figure) -> Canvas:
    """Draws the figure; returns matplotlib's figure."""
    with matplotlib.rc_context(STYLE):
        match figure:
            case Accuracy():
                return _accuracy(figure)
            case Trials():
                return _trials(figure)
            case AccuracyByRow():
                return _by_row(figure)
            case Costs():
                return _costs(figure)
            case Curves():
                return _curves(figure)
            case Speeds():
                return _speeds(figure)
    raise TypeError(f"{type(figure).__name__} is not a kind of figure that can be drawn")


def _accuracy(figure: Accuracy) -> Canvas:
    dots = [dot for _, pairs in figure.panels for dot in _dots(pairs)]
    height, gap = (296.0, 0.0) if len(figure.panels) == 1 else (210.0, 8.0)
    prefix = f"labels without “{figure.prefix}”" if figure.prefix else ""
    canvas = new_canvas(figure, height * len(figure.panels) + gap, [dot.mark for dot in dots], prefix)
    xs = [dot.x for dot in dots]
    for i, (data, pairs) in enumerate(figure.panels):
        top = HEAD + gap + height * i
        ax = add_axes(canvas, 52, height_of(canvas) - top - height + 40, 12, top)
        ax.set_xlabel(figure.cost)
        ax.set_ylabel(figure.value)
        set_scale(ax, "x", xs, log=max(xs) > 3 * min(xs) > 0)
        set_scale(ax, "y", [edge for dot in _dots(pairs) for edge in (dot.y - dot.error, dot.y + dot.error)])
        if data:
            ax.set_title(data, loc="left", size=TEXT, pad=1)
        _pairs(canvas, ax, pairs)
    return canvas


def _pairs(canvas: Canvas, ax: Axes, pairs: Sequence[Pair]) -> None:
    dots = _dots(pairs)
    draw_links(ax, [(pair.published, pair.ours) for pair in pairs])
    dense = sorted((dot.x, dot.y) for dot in dots if dot.mark == DENSE)
    if dense:
        ax.plot([x for x, _ in dense], [y for _, y in dense], color=MUTED, lw=1.2, zorder=1, gid="dense-line")
    draw_marks(ax, dots)
    labelled = [(_labelled(pair), dot) for pair in pairs if pair.label and (dot := pair.labelled)]
    write_labels(canvas, ax, labelled, [box_of(ax, dot) for dot in dots])


def _trials(figure: Trials) -> Canvas:
    """Small dots for all trials, and the front as steps: what can be had at a cost or below it."""
    on_front = [dot for _, dot in figure.front]
    canvas = new_canvas(figure, 296, note="each dot is a trial; line: the front, labelled by the numbers of its trials")
    ax = add_axes(canvas, 52, 40, 12, HEAD)
    ax.set_xlabel("macs [M]")
    ax.set_ylabel("top-1 on held-out training images [%]")
    xs, ys = [dot.x for dot in figure.dots], [dot.y for dot in figure.dots]
    set_scale(ax, "x", xs, log=max(xs) > 3 * min(xs) > 0)
    set_scale(ax, "y", ys)
    ax.plot(xs, ys, linestyle="", marker="o", ms=3, mfc=MUTED, mec="none", zorder=2, gid="trials")
    style: dict[str, Any] = {"drawstyle": "steps-post", "color": VERMILLION, "lw": 1.2, "marker": "o", "ms": 4}
    ax.plot([dot.x for dot in on_front], [dot.y for dot in on_front], zorder=3, gid="front", **style)
    write_labels(canvas, ax, list(figure.front), [box_of(ax, dot, 4) for dot in figure.dots])
    return canvas


def _dots(pairs: Sequence[Pair]) -> list[Dot]:
    return [dot for pair in pairs for dot in (pair.published, pair.ours) if dot]


def _labelled(pair: Pair) -> str:
    return f"~{pair.label}" if pair.published and pair.published.mark == RECALLED else pair.label


def _by_row(figure: AccuracyByRow) -> Canvas:
    pairs = [_at_height(pair, y) for y, pair in enumerate(figure.pairs)]
    dots = _dots(pairs)
    canvas = new_canvas(figure, 17.0 * len(pairs) + 50, [dot.mark for dot in dots])
    labels = [_labelled(pair) for pair in pairs]
    ax = add_axes(canvas, max(text_size(label)[0] for label in labels) + 14, 36, 14, HEAD)
    ax.set_xlabel(figure.value)
    ax.set_ylim(len(pairs) - 0.4, -0.6)
    ax.set_yticks(range(len(pairs)), labels)
    ax.tick_params(axis="y", length=0)
    set_scale(ax, "x", [edge for dot in dots for edge in (dot.x - dot.error, dot.x + dot.error)])
    draw_links(ax, [(pair.published, pair.ours) for pair in pairs])
    draw_marks(ax, dots, "x")
    return canvas


def _at_height(pair: Pair, y: float) -> Pair:
    published, ours = (dot and replace(dot, y=y) for dot in (pair.published, pair.ours))
    return Pair(pair.label, published, ours)


def _costs(figure: Costs) -> Canvas:
    marks = [point.dot.mark for _, points in figure.panels for point in points]
    least = f"; labelled from {100 * figure.label_from:g} %" if figure.label_from else ""
    canvas = new_canvas(figure, 320, marks, f"line: the same value{least}; scale logarithmic from {LEAST:g} %")
    width = WIDTH / len(figure.panels)
    for i, (of, points) in enumerate(figure.panels):
        ax = add_axes(canvas, 52 + i * width, 36, WIDTH - (i + 1) * width + 20, HEAD)
        ax.set_xlabel(f"published {of}")
        ax.set_ylabel("recomputed, difference in %" if i == 0 else "")
        _differences(canvas, ax, points)
    return canvas


def _differences(canvas: Canvas, ax: Axes, points: Sequence[Cost]) -> None:
    """Draws by how many percent ours differs from the published value, over that; the line is at the same value.

    The scale is logarithmic in both directions from `LEAST` percent on, so that small and large differences are seen.
    """
    dots = [replace(point.dot, y=100 * (point.dot.y / point.dot.x - 1)) for point in points]
    set_scale(ax, "x", [dot.x for dot in dots], log=True)
    set_signed_scale(ax, [dot.y for dot in dots], LEAST)
    ax.plot(ax.get_xlim(), (0, 0), color=MUTED, lw=0.8, zorder=1, gid=f"identity-{len(canvas.axes)}")
    draw_marks(ax, dots)
    line = [box_of(ax, Dot(float(x), 0.0, EXACT), 2) for x in np.geomspace(*ax.get_xlim(), 60)]
    labelled = [(point.label, dot) for point, dot in zip(points, dots, strict=True) if point.label]
    write_labels(canvas, ax, labelled, [*line, *(box_of(ax, dot) for dot in dots)])


def _speeds(figure: Speeds) -> Canvas:
    """Shares of time over shares of MACs, with one line for no speed-up and one for the speed-up of the MACs."""
    dots = [dot for _, several in figure.points for dot in several]
    note = "solid: as much as the dense network; dashed: as the MACs promise"
    canvas = new_canvas(figure, 380, [dot.mark for dot in dots], note)
    ax = add_axes(canvas, 52, 36, 12, HEAD)
    ax.set_xlabel("multiply-accumulates, share of the dense network's")
    ax.set_ylabel("time, share of the dense network's")
    set_scale(ax, "x", [1.0, *(dot.x for dot in dots)], log=True)
    set_scale(ax, "y", [1.0, *(dot.y for dot in dots)], log=True)
    (left, right), limits = ax.get_xlim(), ax.get_ylim()
    ax.plot((left, right), (1, 1), color=MUTED, lw=0.9, zorder=1, gid="same-time")
    ax.plot((left, right), (left, right), color=MUTED, lw=0.9, linestyle="--", zorder=1, gid="as-macs")
    ax.set_ylim(limits)
    pairs = [(several[0], several[-1]) for _, several in figure.points]
    draw_links(ax, pairs)
    draw_marks(ax, dots)
    steps = [float(x) for x in np.geomspace(left, right, 80)]
    lines = [box_of(ax, Dot(x, y, TRAINING), 2) for x in steps for y in (1.0, x)]
    labelled = [(label, several[0]) for label, several in figure.points]
    write_labels(canvas, ax, labelled, [*lines, *(box_of(ax, dot) for dot in dots)])
    return canvas


def _curves(figure: Curves) -> Canvas:
    height, gap = 190.0, 10.0
    seeds = {curve.seeds for panel in figure.panels for curve in panel.curves}
    line = f"mean over {seeds.pop()} seeds" if len(seeds) == 1 else "mean over seeds"
    note = f"{figure.value}; line: {line}, band: lowest to highest seed"
    canvas = new_canvas(figure, height * len(figure.panels) + gap, note=note)
    labels = [[_ended(curve, seeds) for curve in panel.curves] for panel in figure.panels]
    right = max(text_size(label)[0] for panel in labels for label in panel) + 34
    for i, (panel, words) in enumerate(zip(figure.panels, labels, strict=True)):
        top = HEAD + gap + height * i
        ax = add_axes(canvas, 52, height_of(canvas) - top - height + 40, right, top)
        _panel(canvas, ax, panel, words)
        ax.set_ylabel(figure.y)
        ax.set_xlabel(figure.x)
        if panel.title:
            ax.set_title(panel.title, loc="left", size=TEXT, pad=3)
    return canvas


def _ended(curve: Curve, seeds: set[int]) -> str:
    """The label of a curve with its last value, and with its number of seeds where this differs between curves."""
    number = f" ({curve.seeds} seed{'s' * (curve.seeds > 1)})" if seeds else ""
    return f"{curve.label} {curve.mean[-1]:.2f}{number}"


def _panel(canvas: Canvas, ax: Axes, panel: Panel, labels: Sequence[str]) -> None:
    """Draws the curves of a panel, and to the right of them the labels, at the height of the curves' ends."""
    for i, (curve, (color, line)) in enumerate(zip(panel.curves, cycle(LINES), strict=False)):
        epochs, name = range(1, len(curve.mean) + 1), f"{len(canvas.axes)}-{i}"
        ax.fill_between(epochs, curve.low, curve.high, color=color, alpha=0.18, lw=0, gid=f"band-{name}")
        ax.plot(epochs, curve.mean, color=color, linestyle=line, lw=1.5, gid=f"curve-{name}")
    ax.set_xlim(1, max(len(curve.mean) for curve in panel.curves))
    ax.locator_params(axis="x", integer=True)
    frame = ax.get_window_extent()
    edge = float(frame.x1) + 6
    ends = [spot_of(ax, len(curve.mean), curve.mean[-1]) for curve in panel.curves]
    heights = spread([y for _, y in ends], LINE, float(frame.y0), float(frame.y1))
    for label, end, y, (color, line) in zip(labels, ends, heights, cycle(LINES), strict=False):
        stroke(canvas, end, (edge, y), color, 0.6)
        stroke(canvas, (edge, y), (edge + 14, y), color, 1.5, line)
        canvas.text((edge + 16) / WIDTH, (y - 0.35 * SMALL) / height_of(canvas), label, size=SMALL)
