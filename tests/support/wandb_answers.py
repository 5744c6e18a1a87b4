"""What W&B's GraphQL answers, from the runs, artifacts, projects and views that a recording server holds.

A method `_on_X` answers the operation X of wandb 0.31's client (or of wandb-workspaces 0.4).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

ENTITY = "tester"
DATES = dict.fromkeys(("createdAt", "updatedAt", "heartbeatAt"), "2026-01-01T00:00:00Z")
USER = {"id": "user", "name": ENTITY, "entity": ENTITY, "username": ENTITY, "email": "t@example.org", "admin": False}
USER |= {"flags": "{}", "deletedAt": None, "apiKeys": {"edges": []}, "teams": {"edges": [{"node": {"name": ENTITY}}]}}


@dataclass
class RunRecord:
    """What the server holds of one run."""

    id: str
    project: str
    entity: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    was_preempting: bool = False
    resumes: int = 0

    @property
    def group(self) -> str:
        return self.fields.get("groupName")

    @property
    def job_type(self) -> str:
        return self.fields.get("jobType")

    @property
    def name(self) -> str:
        return self.fields.get("displayName")

    @property
    def sweep(self) -> str | None:
        return self.fields.get("sweep")

    @property
    def tags(self) -> list[str]:
        return self.fields.get("tags") or []

    @property
    def values(self) -> dict[str, Any]:
        """The configuration as the run's owner gave it."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}

    def history(self) -> list[dict[str, Any]]:
        """The rows that were logged, in the order of the file."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    def series(self, key: str) -> list[Any]:
        """The values of one key, in order, of the rows that have it."""
        return [row[key] for row in self.history() if key in row]

    def count(self, file: str) -> int:
        return len(self.lines.get(file, {}))


@dataclass
class Artifact:
    """An artifact version; `files` maps the paths that its manifest lists to their digests."""

    id: str
    type: str
    name: str
    run: str
    aliases: list[str]
    digest: str
    metadata: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False

    @property
    def files(self) -> dict[str, str]:
        return {path: entry["digest"] for path, entry in self.manifest.get("contents", {}).items()}


class Answers:
    """The store and its GraphQL; `url` is where uploads go."""

    url = ""

    def __init__(self) -> None:
        self.runs: dict[str, RunRecord] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.projects: set[tuple[str, str]] = set()
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.unknown: list[str] = []

    def graphql(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """The answer to an operation; an unknown one is noted and answered with an error."""
        self.operations.append((name, given))
        answer: Callable[[dict[str, Any]], Any] | None = getattr(self, f"_on_{name}", None)
        if answer is None:
            self.unknown.append(name)
            return {"errors": [{"message": f"unknown operation {name}"}]}
        return {"data": answer({key: value for key, value in given.items() if value is not None})}

    # who is there, projects

    def _on_Viewer(self, given: dict[str, Any]) -> Any:
        return {"viewer": USER}

    _on_GetViewer = _on_GetDefaultEntity = _on_Viewer

    def _on_ServerFeaturesQuery(self, given: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _project(self, entity: str, name: str) -> dict[str, Any]:
        self.projects.add((entity, name))
        owner = {"entity": {"id": entity, "name": entity}, "entityName": entity, "user": USER}
        known = {"__typename": "Project", "id": f"project-{name}", "internalId": f"internal-{name}", "name": name}
        return known | owner | DATES | {"isBenchmark": False, "readOnly": False}

    def _on_GetProject(self, given: dict[str, Any]) -> Any:
        wanted = (given.get("entity") or given.get("entityName") or ENTITY, given.get("name") or given["projectName"])
        return {"project": self._project(*wanted) if wanted in self.projects else None}

    _on_ProjectInternalId = _on_GetProject

    def _on_GetProjects(self, given: dict[str, Any]) -> Any:
        edges = [{"node": self._project(*p)} for p in sorted(self.projects) if p[0] == given.get("entity", ENTITY)]
        return {"models": {"pageInfo": _last_page(), "edges": edges}}

    def _on_CreateProject(self, given: dict[str, Any]) -> Any:
        wanted = given.get("input", given)
        project = self._project(wanted.get("entityName") or ENTITY, wanted["name"])
        return {"result": {"project": project, "model": project, "inserted": True}}

    _on_UpsertModel = _on_CreateProject

    # runs

    def _on_RunResumeStatus(self, given: dict[str, Any]) -> Any:
        run = self.runs.get(given["name"])
        if run:
            run.state, run.exit_code = "running", None
            run.resumes += 1
        model = self._project(given.get("entity") or ENTITY, given["project"])
        return {"model": {**model, "bucket": run and self._node(run)}}

    def _on_UpsertBucket(self, given: dict[str, Any]) -> Any:
        wanted = given.get("id", given.get("name"))
        named = next((run for run in self.runs.values() if wanted in (run.id, _key(run))), None)
        run = named or RunRecord(given["name"], given["project"], given.get("entity") or ENTITY)
        self.runs[run.id] = run
        run.fields.update({key: given[key] for key in given if key not in ("id", "config", "summaryMetrics")})
        if "config" in given:
            run.config = json.loads(given["config"])
        if "summaryMetrics" in given:
            run.summary = json.loads(given["summaryMetrics"])
        node = {**self._node(run), "project": self._project(run.entity, run.project)}
        return {"upsertBucket": {"bucket": node, "inserted": named is None}}

    def _node(self, run: RunRecord) -> dict[str, Any]:
        history = run.lines.get("wandb-history.jsonl", {})
        tail = [history[max(history)]] if history else []
        steps = [row["_step"] for row in run.history() if "_step" in row]
        counts = {"history": run.count("wandb-history.jsonl"), "events": run.count("wandb-events.jsonl")}
        counts |= {"log": run.count("output.log")}
        known = {"id": _key(run), "name": run.id, "displayName": run.name, "group": run.group, "jobType": run.job_type}
        known |= {"tags": run.tags, "notes": run.fields.get("notes"), "description": None, "state": run.state}
        known |= {"commit": run.fields.get("commit"), "readOnly": False, "sweepName": run.sweep, "user": USER}
        known |= {**DATES, "systemMetrics": "{}"}
        known |= {"config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary)}
        known |= {f"{what}LineCount": number for what, number in counts.items()}
        known |= {"historyTail": json.dumps(tail), "eventsTail": "[]", "wandbConfig": '{"t": {}}'}
        return known | {"projectId": "1", "historyKeys": {"lastStep": max(steps, default=-1)}}

    def _on_Run(self, given: dict[str, Any]) -> Any:
        run = self.runs.get(given.get("name") or given.get("run"))
        return {"project": {"internalId": "1", "run": run and self._node(run)}}

    _on_RunState = _on_QueryRunInfo = _on_RunHistoryKeys = _on_Run

    def _on_Runs(self, given: dict[str, Any]) -> Any:
        runs = [run for run in self.runs.values() if run.project == given["project"]]
        edges = [{"node": self._node(run), "cursor": run.id} for run in runs]
        found = {"edges": edges, "pageInfo": _last_page()}
        return {"project": {"internalId": "1", "runCount": len(runs), "readOnly": False, "runs": found}}

    def _on_CreateRunFiles(self, given: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": self._place(given["run"], name)} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _on_MarkRunFilesUploaded(self, given: dict[str, Any]) -> Any:
        return {"markRunFilesUploaded": {"success": True}}

    def _place(self, owner: str, name: str) -> str:
        return f"{self.url}/upload/{owner}/{quote(name)}"

    # artifacts

    def _on_XXHashDigestsEnabled(self, given: dict[str, Any]) -> Any:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _on_OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    def _on_FetchArtifactDigestAlgorithm(self, given: dict[str, Any]) -> Any:
        return {"project": {"artifactType": None}}

    def _on_ArtifactType(self, given: dict[str, Any]) -> Any:
        return {"project": {"artifact": None}}

    def _on_CreateArtifact(self, given: dict[str, Any]) -> Any:
        sent = given["input"]
        name = sent["artifactCollectionName"]
        versions = [a for a in self.artifacts.values() if a.name == name and a.committed]
        found = next((a for a in versions if a.digest == sent.get("digest")), None)
        aliases = [alias["alias"] for alias in sent.get("aliases") or []]
        if found is None:
            new = f"artifact{len(self.artifacts)}"
            found = Artifact(new, sent["artifactTypeName"], name, sent.get("runName", ""), aliases, sent["digest"])
            found.metadata = json.loads(sent.get("metadata") or "{}")
            self.artifacts[new] = found
        for other in versions:
            other.aliases = [alias for alias in other.aliases if alias not in aliases]
        found.aliases = sorted({*found.aliases, *aliases})
        latest = {"latestArtifact": {"id": versions[-1].id} if versions else None}
        state = "COMMITTED" if found.committed else "PENDING"
        return {"createArtifact": {"artifact": {"id": found.id, "state": state, "artifactSequence": latest}}}

    def _on_CreateArtifactManifest(self, given: dict[str, Any]) -> Any:
        url = self._place(given["artifactID"], "manifest")
        file = {"id": "file", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": given["artifactID"], "file": file}}}

    _on_UpdateArtifactManifest = _on_CreateArtifactManifest

    def _on_CreateArtifactFiles(self, given: dict[str, Any]) -> Any:
        edges = []
        for file in given["input"]["artifactFiles"]:
            url = self._place(file["artifactID"], f"files/{file['name']}")
            node = {"storagePath": file["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, given: dict[str, Any]) -> Any:
        artifact = self.artifacts[given["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    # workspaces and reports

    def _on_UpsertView2(self, given: dict[str, Any]) -> Any:
        same = [view for view in self.views.values() if view["name"] == given.get("name")]
        view_id = given.get("id") or (same[0]["id"] if same and given.get("name") else f"view{len(self.views)}")
        self._project(given.get("entityName") or ENTITY, given["projectName"])
        inserted = view_id not in self.views
        view = self.views.setdefault(view_id, {"id": view_id, "displayName": "", "description": ""})
        view.update(given, id=view_id, spec=json.loads(given["spec"]))
        return {"upsertView": {"view": self._view(view), "inserted": inserted}}

    _on_upsertView = _on_UpsertView2

    def _view(self, view: dict[str, Any]) -> dict[str, Any]:
        project = self._project(view.get("entityName") or ENTITY, view["projectName"])
        return {"type": "", "name": "", **view, **DATES, "project": project, "spec": json.dumps(view["spec"])}

    def _on_View(self, given: dict[str, Any]) -> Any:
        found = [v for v in self.views.values() if v.get("name") == given["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": self._view(view)} for view in found]}}}

    def _on_SpecificReport(self, given: dict[str, Any]) -> Any:
        return {"view": self._view(self.views[given["reportId"]])}

    def _on_deleteView(self, given: dict[str, Any]) -> Any:
        return {"deleteView": {"success": bool(self.views.pop(given["id"], None)), "pendingDrafts": 0}}


def _key(run: RunRecord) -> str:
    return f"bucket-{run.id}"


def _last_page() -> dict[str, Any]:
    return {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
