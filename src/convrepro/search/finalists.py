"""The end of a search: the networks of its front and their rivals, as an ordinary table of the user's own.

The rows are plain overrides, so that the networks can be trained again without the search.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convrepro.errors import ConvReproError
from convrepro.evidence.width import thinned
from convrepro.runs.comparison import DENSE, Choice, write_table
from convrepro.search.search import Search
from convrepro.search.trial import Trial, front, points
from convrepro.tables import Table

QUESTION = "Does the search find networks that are better than one operator everywhere and than a narrower network?"


@dataclass(frozen=True)
class Finalists:
    """The networks that are trained at the end.

    Attributes:
        found: the trials of the front that were chosen, by their MACs.
        rows: these trials, networks with one operator everywhere, and narrower dense ones.
        missing: why a rival is not there, by its title.
    """

    found: tuple[Trial, ...]
    rows: tuple[Choice, ...]
    missing: dict[str, str] = field(default_factory=dict)


def title_of(trial: Trial) -> str:
    """The name of the row of a trial."""
    return f"found, trial {trial['number']}"


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of the numbers, evenly spaced, the last and, of several, the first among them."""
    if len(numbers) <= most:
        return list(numbers)
    if most == 1:
        return [numbers[-1]]
    return [numbers[round(place * (len(numbers) - 1) / (most - 1))] for place in range(most)]


def finalists(search: Search, trials: Sequence[Trial], most: int, uniform: int | None) -> Finalists:
    """Chooses at most `most` networks of the front of held-out accuracy against MACs, and their rivals.

    `uniform` is how many networks with one operator everywhere are rivals, those whose MACs are nearest to the chosen
    ones'; None for all that meet the constraints. Raises ConvReproError where no trial was trained to its end.
    """
    chosen = [trials[number] for number in spread(front(points(trials)), most)]
    if not chosen:
        reasons = [trial["reason"] for trial in trials if trial["state"] == "failed" and "reason" in trial]
        raise ConvReproError(f"no trial was trained to its end{f': {reasons[-1]}' if reasons else ''}")
    space, costs = search.space, [trial["macs"] for trial in chosen]
    rows = [Choice(title_of(trial), space.overrides(trial["params"])) for trial in chosen]
    rivals = {
        title: params
        for title, params in space.uniform().items()
        if not search.limits.excess(space.cost(params)) and all(params != trial["params"] for trial in chosen)
    }

    def distance(title: str) -> int:
        return min(abs(space.cost(rivals[title]).macs - macs) for macs in costs)

    kept = set(sorted(rivals, key=distance)[:uniform])
    rows += [Choice(f"{title} everywhere", space.overrides(rivals[title])) for title in rivals if title in kept]
    missing: dict[str, str] = {}
    for trial, macs in zip(chosen, costs, strict=True):
        try:
            override, title = thinned(space.network, macs)
            rows.append(Choice(title, ("conv=standard", override)))
        except ConvReproError as error:
            missing[f"dense, as narrow as trial {trial['number']}"] = str(error)
    once: dict[tuple[str, ...], Choice] = {}
    for row in rows:
        once.setdefault(tuple(row.overrides), row)
    once.pop(("conv=standard",), None)
    return Finalists(tuple(chosen), tuple({row.id: row for row in once.values()}.values()), missing)


def write(search: Search, found: Finalists, seeds: Sequence[int], root: Path) -> Table:
    """Writes the table of the networks into the folder of tables `root`, and returns it."""
    rows: list[dict[str, object]] = [
        {"id": row.id, "label": row.title, "overrides": list(row.overrides), "published": {}}
        for row in (Choice(DENSE, ("conv=standard",)), *found.rows)
    ]
    title = f"Networks found in {search.space.network.model} on {search.space.network.data.name}"
    return write_table(search.name, title, QUESTION, "search", search.space.base, seeds, rows, root)
