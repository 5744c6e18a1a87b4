"""Compares searches of one problem by different samplers: the hypervolume of the front after each trial."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from convrepro.config.scientific import differences
from convrepro.config.strict import ON_DISK, read_file, text_of
from convrepro.errors import ConvReproError
from convrepro.report.plots import draw
from convrepro.report.plots.kinds import Curve, Panel, Searches
from convrepro.runs.storage import write_whole
from convrepro.search.trial import Trial, hypervolume, points
from convrepro.tables.markdown import Grid, escaped, markdown_grid

#: The names of the files that `write` makes.
STEM = "samplers"
#: In what searches that are compared may differ.
FREE = ("sampler", "seed")


class Dense(TypedDict):
    """The cost of the dense network for one image."""

    macs: int
    params: int


@with_config(ON_DISK)
class Record(TypedDict):
    """A search as `report.search.write_trials` writes it."""

    search: str
    settings: dict[str, Any]
    dense: Dense
    trials: list[Trial]


def read(paths: Sequence[Path]) -> list[Record]:
    """The searches in these files, each written as `<name>-trials.json`.

    Raises ConvReproError for a file that is none, for searches that differ in more than sampler and seed, and for two
    of the same sampler and seed.
    """
    found = [read_file(Record, path) for path in paths]
    first, *others = found
    for path, other in zip(paths[1:], others, strict=True):
        for key, one, two in differences(_problem(first), _problem(other)):
            raise ConvReproError(
                f"{path} cannot be compared with {paths[0]}: its {key} is {text_of(two)}, not {text_of(one)}; give "
                "searches that differ in sampler and seed alone"
            )
    who = [(one["settings"]["sampler"], one["settings"]["seed"]) for one in found]
    if twice := next((one for one in who if who.count(one) > 1), None):
        raise ConvReproError(f"there are two searches by {twice[0]} with seed {twice[1]}; give each once")
    if not all(trained(one) for one in found):
        raise ConvReproError("a search without a trained trial cannot be compared; wait until it has one")
    return found


def _problem(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record["settings"].items() if key not in FREE}


def trained(record: Record) -> list[Trial]:
    """The trials of a search that count, in order: all but those that break a constraint or are running."""
    return [trial for trial in record["trials"] if trial["state"] not in ("infeasible", "running")]


def curve(record: Record, trials: int) -> tuple[float, ...]:
    """The hypervolume of the front after each of the first trials that count, in percent (see `hypervolume`)."""
    counted = trained(record)[:trials]
    found = points(record["trials"])
    after = []
    for trial in counted:
        so_far = {number: point for number, point in found.items() if number <= trial["number"]}
        after.append(round(100 * hypervolume(so_far, record["dense"]["macs"]), 4))
    return tuple(after)


def by_sampler(records: Sequence[Record]) -> dict[str, list[tuple[float, ...]]]:
    """The curves of each sampler, one for each seed, over as many trials as all searches have."""
    trials = min(len(trained(record)) for record in records)
    curves: dict[str, list[tuple[float, ...]]] = {}
    for record in sorted(records, key=lambda one: (one["settings"]["sampler"], one["settings"]["seed"])):
        curves.setdefault(record["settings"]["sampler"], []).append(curve(record, trials))
    return curves


def grid(records: Sequence[Record]) -> Grid:
    """A line for each sampler: the hypervolume at the end of each seed, their mean and standard deviation."""
    body = []
    for sampler, curves in by_sampler(records).items():
        ends = [one[-1] for one in curves]
        spread = f"{statistics.stdev(ends):.2f}" if len(ends) > 1 else ""
        body.append([sampler, f"{statistics.fmean(ends):.2f}", spread, ", ".join(f"{end:.2f}" for end in ends)])
    return [("", "sampler"), (" ", "mean"), (" ", "std"), (" ", "by seed")], body


def figure(records: Sequence[Record]) -> Searches:
    """The curves of the samplers: mean over the seeds, lowest and highest."""
    found = []
    for sampler, curves in by_sampler(records).items():
        after = list(zip(*curves, strict=True))
        means = tuple(round(statistics.fmean(values), 4) for values in after)
        found.append(Curve(sampler, len(curves), means, tuple(map(min, after)), tuple(map(max, after))))
    settings = records[0]["settings"]
    title = f"Samplers in {settings['model']} on {settings['data']}"
    return Searches("", title, "hypervolume of the front (%)", (Panel("", tuple(found)),))


def write(records: Sequence[Record], root: Path) -> list[Path]:
    """Writes the comparison as Markdown, CSV and a plot into a folder; returns the paths."""
    settings, curves = records[0]["settings"], by_sampler(records)
    trials = len(next(iter(curves.values()))[0])
    picture = figure(records)
    bounds = [f"{key} {settings[key]:,}" for key in ("max_macs", "max_params") if settings[key]]
    said = [
        f"Space {settings['space']['name']}{''.join(f', {bound}' for bound in bounds)}; {trials} trials each, budget "
        f"{settings['budget']}, {100 * settings['holdout']:g} % of the training images held out.",
        "Hypervolume: the share, in percent, of the rectangle from 0 to 100 % held-out top-1 and from 0 to the dense "
        "network's MACs that the front dominates. No test image was read.",
    ]
    markdown = [f"# {escaped(picture.title)}", "", *map(escaped, said), "", *markdown_grid(grid(records)), ""]
    markdown.append(f"![{escaped(draw.describe(picture))}]({STEM}.svg)")
    values = io.StringIO()
    writer = csv.writer(values)
    writer.writerow(["sampler", "seed", "trial", "hypervolume"])
    for record in records:
        for number, area in enumerate(curve(record, trials), start=1):
            writer.writerow([record["settings"]["sampler"], record["settings"]["seed"], number, area])
    paths = []
    for suffix, text in {"md": "\n".join(markdown) + "\n", "csv": values.getvalue(), "svg": draw.svg(picture)}.items():
        paths.append(root / f"{STEM}.{suffix}")
        write_whole(paths[-1], text.encode())
    return paths


def lines(records: Sequence[Record]) -> list[str]:
    """The comparison for a terminal."""
    header, body = grid(records)
    rows: list[list[str]] = [[title for _, title in header], *body]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
