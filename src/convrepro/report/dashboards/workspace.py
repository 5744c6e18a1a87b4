"""W&B dashboards as code: a workspace for a table, a report for a paper; saved to the project or written as JSON.

Building one twice gives the same JSON. Saving finds the view of this name in the project and replaces it, changes that
were made to it by hand included; W&B's "save as a new view" keeps such changes.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import wandb
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces._graphql import execute_graphql, get_app_url
from wandb_workspaces.reports.v2.gql import upsert_view

from convrepro.errors import ConvReproError
from convrepro.report.dashboards.panels import colors, columns, limit, runs_of, sections, stable_id
from convrepro.runs.storage import write_json
from convrepro.tables import Results, Statics, Table, judge_claim, tally
from convrepro.tables.render import describe_source
from convrepro.tracking.service import answering
from convrepro.tracking.sync import Server

WORKSPACE, REPORT = "project-view", "runs"
#: Columns of a report's grid, in W&B's units, and the size of a panel in it.
GRID, WIDTH, HEIGHT = 24, 12, 8
SAME_NAME = """
query View($entityName: String, $projectName: String, $viewType: String, $viewName: String) {
  project(name: $projectName, entityName: $entityName) {
    allViews(viewType: $viewType, viewName: $viewName) { edges { node { id name } } }
  }
}
"""


@dataclass(frozen=True)
class View:
    """A workspace (`type` project-view) or report (runs), as W&B stores it."""

    type: str
    name: str
    title: str
    description: str
    spec: dict[str, Any]

    def write(self, path: Path) -> Path:
        """Write the view as JSON; returns `path`."""
        write_json(path, asdict(self))
        return path

    def save(self, server: Server) -> str:
        """Save the view to the project, in the place of the one of this name; returns its address.

        Raises ConvReproError where the server refuses, or does not answer in time.
        """
        with answering(server.timeout):
            create_project(server)
            return self._save(server.api, server.entity, server.cfg["project"])

    def _save(self, api: wandb.Api, entity: str, project: str) -> str:
        owner = {"entityName": entity, "projectName": project}
        found = execute_graphql(api, SAME_NAME, {**owner, "viewType": self.type, "viewName": self.name})
        ids = [edge["node"]["id"] for edge in found["project"]["allViews"]["edges"]]
        given = {"id": ids[0] if ids else None, "name": self.name, "type": self.type, "displayName": self.title}
        given |= {"description": self.description, "spec": json.dumps(self.spec)}
        saved = execute_graphql(api, upsert_view, {**owner, **given})["upsertView"]["view"]
        home = f"{get_app_url(api)}{entity}/{project}"
        if self.type == WORKSPACE:
            return f"{home}?nw={self.name.removeprefix('nw-').removesuffix('-v')}"
        return f"{home}/reports/{quote(self.title.replace(' ', '-'))}--{saved['id'].rstrip('=')}"


def create_project(server: Server) -> None:
    """Create the project of `server` where it does not exist."""
    name = server.cfg["project"]
    if name not in server.projects:
        server.api.create_project(name, server.entity)
        server.projects.add(name)


def workspace(table: Table, budget: str) -> View:
    """Build the dashboard of a table's runs at a budget.

    Raises ConvReproError for a table without runs of its own.
    """
    if not table.to_run:
        others = sorted({row.same_as.rpartition("/")[0] for row in table.rows if row.same_as})
        where = f"its rows are those of {', '.join(others)}" if others else "nothing in it is trained"
        raise ConvReproError(f"{table.name} has no runs of its own for a dashboard to show; {where}")
    title = _title(table.name, budget)
    layout = ws.SectionLayoutSettings(2, 2)
    view = ws.Workspace(
        entity="",
        project="",
        name=title,
        sections=[
            ws.Section(name=name, panels=cast(Any, panels), is_open=True, layout_settings=layout)
            for name, panels in sections(table, budget).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=limit(table)),
        runset_settings=ws.RunsetSettings(
            filters=runs_of(table, budget),
            order=[expr.Ordering(expr.Metric("Name"), ascending=True)],
            pinned_columns=columns(table),
            run_settings={run: ws.RunSettings(color) for run, color in colors(table, budget).items()},
        ),
    )
    view._internal_runset_id = stable_id(title)
    name = f"nw-{stable_id(title)[:11]}-v"
    return View(WORKSPACE, name, title, "", _plain(view._to_model().spec))


def report(
    paper: str,
    tables: Sequence[Table],
    budget: str,
    evidence: Callable[[Table], tuple[Statics, Results]],
    server: Server | None = None,
) -> View:
    """Build a page for a paper: for each table its question, claims, verdict counts, and the panels of its runs.

    `evidence(table)` returns our counts and the collected results; `server` has the runs, if there is one. Raises
    ConvReproError where the server refuses, or does not answer in time.
    """
    title = _title(f"{paper}: published and reproduced", budget)
    blocks: list[Any] = [wr.TableOfContents()]
    for table in tables:
        blocks += [wr.H1(text=table.title), *_words(table, *evidence(table))]
        if table.to_run:
            blocks.append(_grid(table, budget, server))
    page = wr.Report(project="", entity="", title=title, blocks=blocks, width="fluid")
    description = f"Tables of {paper}: published values, runs at budget {budget}, verdicts"
    with answering(server.timeout) if server else nullcontext():  # the server is asked for the project's number
        if server:
            create_project(server)
        spec = page._to_model().spec
    return View(REPORT, stable_id(title), title, description, _plain(spec))


def _title(what: str, budget: str) -> str:
    return what if budget == "paper" else f"{what} ({budget})"


def _plain(spec: Any) -> dict[str, Any]:
    return json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))


def _words(table: Table, statics: Statics, results: Results) -> list[Any]:
    verdicts = [f"{kind}: {_counted(counts)}" for kind, counts in tally(table, statics, results).items() if counts]
    blocks: list[Any] = [
        wr.P(text=f"{describe_source(table.source)}. {table.question}"),
        wr.P(text=["Verdicts of the collected evidence: ", "; ".join(verdicts) or "none", "."]),
    ]
    if table.claims:
        judged = [judge_claim(table, claim, statics, results) for claim in table.claims]
        lines: list[Any] = [f"{v.claim.text}: {v.ours} by our values, {v.paper} by the paper's" for v in judged]
        blocks.append(wr.UnorderedList(items=lines))
    return blocks


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items())


def _grid(table: Table, budget: str, server: Server | None) -> wr.PanelGrid:
    panels: list[Any] = [panel for panels in sections(table, budget).values() for panel in panels]
    for number, panel in enumerate(panels):
        x, y = number * WIDTH % GRID, number * WIDTH // GRID * HEIGHT
        panel.layout = wr.Layout(x=x, y=y, w=WIDTH, h=HEIGHT)
    runs = wr.Runset(
        entity=server.entity if server else "",
        project=server.cfg["project"] if server else "",
        name=table.name,
        filters=runs_of(table, budget),
        order=[wr.OrderBy("Name", ascending=True)],
        pinned_columns=columns(table),
        lock_columns=True,
        run_settings={run: wr.RunSettings(color) for run, color in colors(table, budget).items()},
    )
    runs._id = stable_id("runs", table.name, budget)
    return wr.PanelGrid(runsets=[runs], panels=panels)
