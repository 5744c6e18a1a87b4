"""Shows a search: its trials by held-out accuracy, and the networks that were trained at the end by test accuracy."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from convrepro.errors import visible
from convrepro.report import comparison
from convrepro.report.comparison import Line
from convrepro.report.plots import draw
from convrepro.report.plots.kinds import OURS, Dot, Trials
from convrepro.runs.storage import write_whole
from convrepro.search.finalists import Finalists, title_of
from convrepro.search.search import Search
from convrepro.search.trial import State, Trial, front, hypervolume, points
from convrepro.tables import Results, Statics, Table

HELD_OUT, TEST = "held-out top-1", "test top-1"
LEGEND = (
    "* at the beginning of a line: no other network of this table is at least as accurate at the same or a lower cost "
    "({cost}). Test top-1: on the test images, by networks that were trained on all training images; mean and standard "
    "deviation over the seeds (number). The search itself saw held-out training images alone."
)
STATES: tuple[State, ...] = ("complete", "stopped", "failed", "running")


def summary(search: Search, trials: Sequence[Trial]) -> list[str]:
    """The search in sentences: its trials by what came of them, and its front."""
    states = Counter(trial["state"] for trial in trials)
    found = points(trials)
    best = front(found)
    twice = sum("same_as" in trial for trial in trials)
    said = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    number = sum(states[state] for state in STATES)
    return [
        f"Search {search.name}: sampler {search.sampler}, seed {search.seed}, {search.space.size:,} networks in space "
        f"{search.space.definition.name}.",
        f"{number} trials ({said}), {twice} of them of a network that was trained before; "
        f"{states['infeasible']} proposals broke a constraint.",
        f"Front by {HELD_OUT} ({100 * search.holdout:g} % of the training images) against MACs: {len(best)} networks, "
        f"hypervolume {hypervolume(found, search.space.dense.macs):.4f}.",
    ]


def front_lines(search: Search, trials: Sequence[Trial]) -> list[str]:
    """The networks of the front for a terminal, by their MACs."""
    timed = any("latency" in trial for trial in trials)
    lines = [f"{'trial':>5}  {'M MACs':>8}  {'of dense':>8}  {'its time  ' * timed}{HELD_OUT}  network"]
    for number in front(points(trials)):
        trial = trials[number]
        share = trial["macs"] / search.space.dense.macs
        chosen = Counter(trial["params"].values())
        network = ", ".join(f"{times} x {choice}" for choice, times in chosen.items())
        accuracy = f"{trial['top1']:.2f}".rjust(len(HELD_OUT))
        latency = f"{trial.get('latency', math.nan):8.3f}  " if timed else ""
        lines.append(f"{number:5}  {trial['macs'] / 1e6:8.2f}  {share:8.3f}  {latency}{accuracy}  {network}")
    return [visible(line) for line in lines]


def write_trials(search: Search, trials: Sequence[Trial], root: Path) -> list[Path]:
    """Writes the trials as CSV, JSON and, with two or more of them, a plot; returns the paths.

    In the CSV, `latency` is a share of the dense network's time, and `hypervolume` that of the front after each trial,
    as a share of the rectangle up to 100 % and to the dense network's MACs.
    """
    stem = root / search.name
    found, values = points(trials), io.StringIO()
    writer = csv.writer(values)
    dimensions = list(search.space.dimensions)
    header = ["trial", "state", "epochs", HELD_OUT, "macs", "params", "latency", "same as", "hypervolume"]
    writer.writerow([*header, *dimensions])
    for trial in trials:
        so_far = {number: point for number, point in found.items() if number <= trial["number"]}
        area = f"{hypervolume(so_far, search.space.dense.macs):.6f}"
        top1 = "" if trial["top1"] is None else f"{trial['top1']:.4f}"
        facts = [trial["number"], trial["state"], len(trial["accuracies"]), top1, trial["macs"], trial["params_count"]]
        latency = f"{trial['latency']:.4f}" if "latency" in trial else ""
        writer.writerow(
            [*facts, latency, trial.get("same_as", ""), area, *(trial["params"][name] for name in dimensions)]
        )
    content = {
        "search": search.name,
        "settings": search.settings,
        "accuracy": f"{HELD_OUT} in percent",
        "dense": {"macs": search.space.dense.macs, "params": search.space.dense.params},
        "front": front(found),
        "trials": list(trials),
    }
    contents = {"csv": values.getvalue(), "json": json.dumps(content, indent=1) + "\n"}
    if picture := figure(search, trials):
        contents["svg"] = draw.svg(picture)
    paths = []
    for suffix, text in contents.items():
        paths.append(stem.with_name(f"{stem.name}-trials.{suffix}"))
        write_whole(paths[-1], text.encode())
    return paths


def figure(search: Search, trials: Sequence[Trial]) -> Trials | None:
    """The plot of the trials; None with fewer than two of them."""
    found = points(trials)
    if len(found) < 2:
        return None
    dots = {number: Dot(macs / 1e6, top1, OURS) for number, (top1, macs) in found.items()}
    title = f"Search in {search.space.network.model} on {search.space.network.data.name}, {search.sampler}"
    best = tuple((str(number), dots[number]) for number in front(found))
    return Trials(search.name, title, tuple(dots.values()), best)


def lines(table: Table, statics: Statics, results: Results, found: Finalists) -> list[Line]:
    """The networks that were trained at the end, those of the front first; rivals that are missing last."""
    return comparison.lines(table, statics, results, {}, found.missing, "macs")


def as_text(found: Sequence[Line]) -> str:
    """The networks that were trained at the end for a terminal."""
    return comparison.as_text(found, TEST)


def write(
    search: Search, trials: Sequence[Trial], table: Table, found: Sequence[Line], chosen: Finalists, root: Path
) -> list[Path]:
    """Writes CSV, JSON, Markdown, plot and HTML page of the networks of the end; returns the paths."""
    by_trial = {title_of(trial): trial["top1"] for trial in chosen.found}
    held_out = ", ".join(f"{title} {top1:.2f}" for title, top1 in by_trial.items() if top1 is not None)
    said = [*summary(search, trials), f"Chosen networks by {HELD_OUT}: {held_out}."]
    said.append(f"Below: {TEST}, budget {search.budget}. {Path(search.name).name}-trials.svg shows the trials.")
    more = {"accuracy": f"{TEST} in percent", "held_out_top1": by_trial}
    return comparison.write_pages(table, found, said, root, "macs", LEGEND, more, TEST)
