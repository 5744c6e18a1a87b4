"""Sends a table's runs that were recorded offline, or that a server did not take in time, to W&B.

What is there is asked of the server, by epoch: nothing is sent twice. Whole attempts go by W&B's own `sync`, in the
order in which they were made. Of a run that is there in part the rest is sent from its result, once it has one.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb

from convrepro.errors import ConvReproError
from convrepro.runs.folder import busy
from convrepro.runs.identity import Identity
from convrepro.runs.result import read_result
from convrepro.tracking.logger import hidden_secrets, replay
from convrepro.tracking.offline import Fragment, fragments

#: Seconds in which an attempt has to be sent.
SENDING = 300
#: What W&B's `sync` says of an attempt that was killed.
TORN = "incomplete record"


@dataclass(frozen=True)
class There:
    """What the server has of a run: its state there and the last epoch, -1 where there is none."""

    state: str = "absent"
    epoch: int = -1


@dataclass
class Synced:
    """What was done, by run: sent, left out as there was nothing to send, or failed with the reason."""

    sent: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> str:
        kinds = {"sent": self.sent, "skipped": self.skipped, "failed": self.failed}
        return ", ".join(f"{len(runs)} {kind}" for kind, runs in kinds.items())


class Server:
    """A W&B project, asked and written to."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        """Raises ConvReproError without an API key, and where the server does not answer or refuses the key."""
        self.cfg = {**cfg, "mode": "online"}
        try:
            with hidden_secrets():
                if not wandb.login(prompt=False, verify=False):
                    raise ConvReproError("there is no W&B API key: `wandb login` stores one, or set WANDB_API_KEY")
                self.api = wandb.Api(timeout=cfg["timeout"])
            self.entity = cfg["entity"] or self.api.settings["entity"] or self.api.default_entity
            self.projects = {project.name for project in self.api.projects(self.entity)}
        except ConvReproError:
            raise
        except Exception as error:
            raise ConvReproError(
                f"W&B at {wandb.setup().settings.base_url} cannot be used: {_sentence(error)}"
            ) from error

    def runs(self, table: str) -> dict[str, There]:
        """The runs of a table's group, by id."""
        if self.cfg["project"] not in self.projects:
            return {}
        path = f"{self.entity}/{self.cfg['project']}"
        self.api.flush()  # it keeps what it was told before
        found = self.api.runs(path, filters={"group": table}, per_page=200, lazy=False)
        return {run.id: There(run.state, int(run.summary.get("epoch", -1))) for run in found}

    def send(self, attempt: Fragment) -> None:
        """Have W&B's own command send an attempt; of a torn one what can be read. Raises ConvReproError otherwise."""
        words = ["sync", "--include-online", "--include-synced", "--project", self.cfg["project"]]
        command = [sys.executable, "-m", "wandb", *words, "--entity", self.entity, str(attempt.path)]
        try:
            with hidden_secrets():
                done = subprocess.run(command, capture_output=True, text=True, timeout=SENDING)
        except subprocess.TimeoutExpired:
            raise ConvReproError(f"not sent within {SENDING} s") from None
        said = (done.stdout + done.stderr).splitlines()
        wrong = [line for line in said if "ERROR" in line and TORN not in line]
        if done.returncode or wrong:
            raise ConvReproError(_sentence(" ".join(wrong or said[-3:])))
        self.projects.add(self.cfg["project"])

    def there(self, identity: Identity) -> There:
        return self.runs(identity.table).get(identity.run_id, There())


def sync(table: str, runs: Path, cfg: Mapping[str, Any], echo: Callable[[str], None]) -> Synced:
    """Send what the server lacks of the table's run folders in `runs`; `cfg` is the `logger` group's choice.

    Raises ConvReproError where W&B cannot be used at all. A run that cannot be sent is told and does not stop the rest.
    """
    server = Server(cfg)
    there = server.runs(table)
    outcome = Synced()
    for identity, folder in recorded(table, runs):
        name = f"{identity.name} ({identity.budget})"
        try:
            told = _sync_run(server, identity, folder, there.get(identity.run_id, There()))
            kind = outcome.sent if told.startswith("sent") else outcome.skipped
        except Exception as error:
            told, kind = _sentence(error), outcome.failed
        kind[name] = told
        echo(f"{name}: {told}")
    return outcome


def recorded(table: str, runs: Path) -> Iterator[tuple[Identity, Path]]:
    """The table's run folders that hold something of W&B's."""
    for path in sorted(runs.glob(f"{table}/*/*/wandb")):
        if match := re.fullmatch(r"(\w+)-seed(\d+)", path.parent.name):
            yield Identity(table, path.parent.parent.name, int(match[2]), match[1]), path.parent


def _sync_run(server: Server, identity: Identity, folder: Path, there: There) -> str:
    """What was done about one run, in words that begin with `sent` where anything was sent."""
    if busy(folder):
        return "is being trained"
    result = read_result(folder)
    if result and whole(there, result):
        return "is there"
    new, rest = missing(fragments(folder), there)
    if new:
        for attempt in new:
            server.send(attempt)
        there = server.there(identity)
    told = [f"{len(new)} attempt{'s' * (len(new) > 1)}"] if new else []
    if result and not whole(there, result):
        replay(server.cfg, identity, folder, result)
        told.append("the rest from its result" if there.state != "absent" else "its result")
    if told:
        return f"sent {' and '.join(told)}"
    if rest:
        return f"is there up to epoch {there.epoch}; the rest goes when the run is done"
    return "is there, as far as it went" if there.state != "absent" else "holds nothing to send"


def whole(there: There, result: Mapping[str, Any]) -> bool:
    """Whether the server has all of a finished run."""
    last = result["history"][-1]["epoch"] if result["history"] else -1
    return there.state == "finished" and there.epoch >= last


def missing(attempts: Sequence[Fragment], there: There) -> tuple[list[Fragment], bool]:
    """The attempts that the server has nothing of, up to one that it has in part; and whether there is such a one.

    Of a run that the server does not know and that never got to the end of an epoch it is the last attempt.
    """
    new: list[Fragment] = []
    reached = there.epoch
    for attempt in attempts:
        if not attempt.epochs or attempt.epochs[-1] <= reached:
            continue
        if attempt.epochs[0] <= reached:
            return new, True
        new.append(attempt)
        reached = attempt.epochs[-1]
    if not new and there.state == "absent":
        new = [attempt for attempt in attempts if attempt.closed][-1:]
    return new, False


def _sentence(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
