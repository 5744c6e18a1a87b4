"""Sends a table's runs that were recorded offline, or that a server did not take in time, to W&B.

The server is asked which epochs it has, so that nothing is sent twice. W&B's own `sync` sends whole attempts, in the
order in which they were made. Where the server has a part of a run, the rest is sent from its result, once it has one.

The server has `logger.timeout` seconds for each answer. The first answer that it does not give in that time ends the
whole command.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import wandb

from convrepro.errors import ConvReproError
from convrepro.runs.folder import busy
from convrepro.runs.identity import Identity
from convrepro.runs.result import read_result
from convrepro.runs.summary import numbered
from convrepro.tables import find_table
from convrepro.tracking.logger import replay
from convrepro.tracking.offline import Fragment, epoch_in, fragments, step_in
from convrepro.tracking.service import Unanswered, answering, close, kill_tree, sentence

#: The most seconds that sending one attempt takes, whatever the server answers meanwhile.
SENDING = 300
#: What W&B's `sync` says of an attempt that was killed.
TORN = "incomplete record"


@dataclass(frozen=True)
class There:
    """What the server has of a run: its state there, and the numbers of its last epoch and of its last step, or 0."""

    state: str = "absent"
    epoch: int = 0
    step: float = 0


@dataclass
class Synced:
    """What was done with each run: sent, skipped because there was nothing to send, or failed with the reason."""

    sent: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> str:
        kinds = {"sent": self.sent, "skipped": self.skipped, "failed": self.failed}
        return ", ".join(f"{len(runs)} {kind}" for kind, runs in kinds.items())


class Server:
    """A W&B project that is read and written; a context manager, for it holds W&B's background service open.

    Each method raises Unanswered where the server does not answer in time, and ConvReproError where it refuses.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        """Connect to the project that the `logger` group's choice names; raises ConvReproError without an API key."""
        self.cfg = {**cfg, "mode": "online"}
        self.timeout: float = cfg["timeout"]
        self.reconnect()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        close(brief=error is not None)

    def reconnect(self) -> None:
        """Connect; needed again where `close` was called since."""
        try:
            with answering(self.timeout):
                if not wandb.login(prompt=False, verify=False):
                    raise ConvReproError("there is no W&B API key: `wandb login` stores one, or set WANDB_API_KEY")
                self.api = self._connected(self.timeout)
                entity = self.cfg["entity"] or self.api.settings["entity"] or self.api.default_entity
                if not entity:
                    raise ConvReproError("W&B names no entity for this API key; set logger.entity=NAME")
                self.entity: str = entity
                self.projects = {project.name for project in self.api.projects(self.entity)}
        except ConvReproError:
            close(brief=True)
            raise

    def _connected(self, timeout: float) -> wandb.Api:
        """A client of the server, which has answered that it accepts the API key."""
        return wandb.Api(timeout=max(1, round(timeout)))

    def runs(self, table: str) -> dict[str, There]:
        """Return the runs of a table's group, by id."""
        if self.cfg["project"] not in self.projects:
            return {}
        path = f"{self.entity}/{self.cfg['project']}"
        with answering(self.timeout):
            self.api.flush()  # it keeps earlier answers
            found = self.api.runs(path, filters={"group": table}, per_page=200, lazy=False)
            return {run.id: There(run.state, epoch_in(run.summary), step_in(run.summary)) for run in found}

    def send(self, attempt: Fragment) -> None:
        """Have W&B's own command send an attempt; of a truncated one it sends what can be read."""
        words = ["sync", "--include-online", "--include-synced", "--project", self.cfg["project"]]
        command = [sys.executable, "-m", "wandb", *words, "--entity", self.entity, str(attempt.path)]
        with answering(SENDING):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            try:
                said = self._while_answering(process).splitlines()
            finally:
                kill_tree(process)
        wrong = [line for line in said if "ERROR" in line and TORN not in line]
        if process.returncode or wrong:
            raise ConvReproError(sentence(" ".join(wrong or said[-3:])))
        self.projects.add(self.cfg["project"])

    def _while_answering(self, process: subprocess.Popen[str]) -> str:
        """What the process says until it has ended; the server is asked now and then whether it still answers."""
        end = time.monotonic() + SENDING
        while True:
            try:
                return process.communicate(timeout=self.timeout / 2)[0]
            except subprocess.TimeoutExpired:
                if time.monotonic() > end:
                    raise ConvReproError(f"not sent within {SENDING} s") from None
            with answering(self.timeout / 2):
                self._connected(self.timeout / 2)

    def there(self, identity: Identity) -> There:
        return self.runs(identity.table).get(identity.run_id, There())


def sync(table: str, runs: Path, cfg: Mapping[str, Any], echo: Callable[[str], None]) -> Synced:
    """Send what the server lacks of the table's run folders in `runs`; `cfg` is the `logger` group's choice.

    A run that cannot be sent is reported and does not stop the rest. Raises ConvReproError where W&B cannot be used at
    all, and Unanswered as soon as the server does not answer in time; the runs that were sent before stay sent.
    """
    outcome = Synced()
    with Server(cfg) as server:
        there = server.runs(table)
        for identity, folder in recorded(table, runs):
            name = f"{identity.name} ({identity.budget})"
            try:
                done = _sync_run(server, identity, folder, there.get(identity.run_id, There()))
                kind = outcome.sent if done.startswith("sent") else outcome.skipped
            except Unanswered:
                raise
            except Exception as error:
                done, kind = sentence(error), outcome.failed
            kind[name] = done
            echo(f"{name}: {done}")
            if name in outcome.failed:
                server.reconnect()
    return outcome


def recorded(table: str, runs: Path) -> Iterator[tuple[Identity, Path]]:
    """Find the table's run folders that hold files of W&B's client."""
    for path in sorted(runs.glob(f"{table}/*/*/wandb")):
        if match := re.fullmatch(r"(\w+)-seed(\d+)", path.parent.name):
            yield Identity(table, path.parent.parent.name, int(match[2]), match[1]), path.parent


def _sync_run(server: Server, identity: Identity, folder: Path, there: There) -> str:
    """Send what the server lacks of one run; returns what was done, with `sent` in front where anything was sent."""
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
    sent = [f"{len(new)} attempt{'s' * (len(new) > 1)}"] if new else []
    if result and not whole(there, result):
        replay(server.cfg, identity, folder, result, find_table(identity.table))
        sent.append("the rest from its result" if there.state != "absent" else "its result")
    if sent:
        return f"sent {' and '.join(sent)}"
    if rest:
        return f"is there up to epoch {there.epoch}; the rest goes when the run is done"
    return "is there, as far as it went" if there.state != "absent" else "holds nothing to send"


def whole(there: There, result: Mapping[str, Any]) -> bool:
    """Whether the server has all of a finished run."""
    last = numbered(result["history"][-1:])
    return there.state == "finished" and (not last or there.epoch >= last[0]["epoch"])


def missing(attempts: Sequence[Fragment], there: There) -> tuple[list[Fragment], bool]:
    """Return the attempts to send whole, and whether the server has a part of the one that follows them.

    The server has no step of the attempts to send. If the server does not know the run, and no attempt got as far as
    to log anything, the last attempt that was closed is sent.
    """
    new: list[Fragment] = []
    reached = there.step
    for attempt in attempts:
        if not attempt.steps or attempt.steps[-1] <= reached:
            continue
        if attempt.steps[0] <= reached:
            return new, True
        new.append(attempt)
        reached = attempt.steps[-1]
    if not new and there.state == "absent":
        new = [attempt for attempt in attempts if attempt.closed][-1:]
    return new, False
