"""Sweeps of W&B on a recording server: a grid's members are handed to its agents, one after the other."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import yaml

from support.wandb_answers import ENTITY, Answers


@dataclass
class Sweep:
    """A sweep; `waiting` are the commands that no agent has yet, `members` maps a run's id to its parameters."""

    id: str
    project: str
    config: dict[str, Any]
    waiting: list[dict[str, Any]] = field(default_factory=list)
    members: dict[str, dict[str, Any]] = field(default_factory=dict)


class SweepAnswers(Answers):
    """The store with its sweeps (see `Answers`)."""

    def __init__(self) -> None:
        super().__init__()
        self.sweeps: dict[str, Sweep] = {}

    def _on_UpsertSweep(self, given: dict[str, Any]) -> Any:
        sweep = Sweep(f"sweep{len(self.sweeps)}", given["projectName"], yaml.safe_load(given["config"]))
        assert sweep.config["method"] == "grid"
        values = {key: spec.get("values", [spec.get("value")]) for key, spec in sweep.config["parameters"].items()}
        for number, chosen in enumerate(itertools.product(*values.values())):
            member = f"{sweep.id}member{number}"
            sweep.members[member] = dict(zip(values, chosen, strict=True))
            # W&B promises no order of the arguments; this one has `conv.p` before the `conv` that knows it
            arguments = {key: {"value": value} for key, value in reversed(sweep.members[member].items())}
            program = sweep.config["program"]
            sweep.waiting.append({"type": "run", "run_id": member, "program": program, "args": arguments})
        self.sweeps[sweep.id] = sweep
        project = self._project(given.get("entityName") or ENTITY, sweep.project)
        return {"upsertSweep": {"sweep": {"name": sweep.id, "project": project}, "configValidationWarnings": []}}

    def _on_SweepWithRuns(self, given: dict[str, Any]) -> Any:
        sweep = self.sweeps[given["sweep"]]
        known = {"id": sweep.id, "name": sweep.id, "method": "grid", "state": "RUNNING", "runs": {"edges": []}}
        return {"project": {"sweep": {**known, "config": yaml.safe_dump(sweep.config)}}}

    def _on_CreateAgent(self, given: dict[str, Any]) -> Any:
        return {"createAgent": {"agent": {"id": f"agent-{self.sweeps[given['sweep']].id}"}}}

    def _on_Heartbeat(self, given: dict[str, Any]) -> Any:
        waiting = self.sweeps[given["id"].removeprefix("agent-")].waiting
        commands = []
        if not json.loads(given["runState"]):
            commands = [waiting.pop(0) if waiting else {"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}
