"""Bounds every wait for W&B: for its server, and for the background service of its client.

W&B's client gives all work to a process of its own, wandb-core. Some of the client's functions wait for that process
without a limit, and so does the hook that the client runs when the interpreter exits. Such a wait ends as soon as the
process does. Every use of the client therefore stands in `answering(seconds)`, which kills the process when the time is
over, and `close` ends the process itself within a fixed time. A process that answers in time is never killed.
"""

import atexit
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import wandb
from wandb.sdk import wandb_setup

from convrepro.config.secrets import is_secret
from convrepro.errors import ConvReproError

#: Seconds beyond the server's own time: to start wandb-core, to write what was recorded to the disk, to end wandb-core.
GRACE = 15
#: Seconds that wandb-core has to end after a failure, when there is nothing left to wait for.
BRIEF = 3
#: The name of the process of W&B's background service.
CORE = "wandb-core"
#: What W&B's client says where a server refuses connections, is slow, or never answers.
SILENCE = re.compile(
    r"timed? ?out|\bin time\b|deadline exceeded|connection (refused|reset)|no such host|not running", re.IGNORECASE
)


class Unanswered(ConvReproError):
    """W&B did not answer within its time; another request would wait in vain."""


@contextmanager
def answering(seconds: float = 0) -> Iterator[None]:
    """Run a body that uses W&B's client; the server has `seconds` to answer, and the body ends `GRACE` later at most.

    Raises Unanswered where there is no answer in that time, and ConvReproError for any other error of the client, both
    with one sentence. After either, `close` must be called before the client is used again.
    """
    _load_client()
    limit = seconds + GRACE
    address = ""
    try:
        with _kills_core(limit) as late, _hidden_secrets():
            address = wandb_setup.singleton().settings.base_url
            yield
            if late.is_set():
                raise TimeoutError
    except ConvReproError:
        raise
    except Exception as error:
        late_or_silent = late.is_set() or isinstance(error, TimeoutError) or SILENCE.search(str(error))
        kind = Unanswered if late_or_silent else ConvReproError
        waited = limit if late.is_set() else seconds
        reason = f"there was no answer within {waited:g} s" if late_or_silent else sentence(error)
        raise kind(f"W&B{address and f' at {address}'} cannot be used: {reason}") from error
    finally:
        atexit.unregister(close)
        atexit.register(close)  # after the client's own hook was registered, so that this one runs before it


def close(exit_code: int = 0, *, brief: bool = False) -> None:
    """End W&B's background service, and kill it where it has not ended after `GRACE` seconds (`brief`: `BRIEF`).

    The service ends once it has sent or written everything. The client's hook at the interpreter's exit, which would
    wait for that without a limit, is removed. The next use of the client starts a new service.
    """
    with _kills_core(BRIEF if brief else GRACE), suppress(Exception, SystemExit):
        wandb.teardown(exit_code=exit_code)
    kill_core()
    atexit.unregister(close)


def sentence(error: object) -> str:
    """What an error, or an answer of the server, says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def kill_core() -> None:
    """Kill the background service of this process and all processes below it, if there are any."""
    processes = _processes()
    for pid, (parent, name) in processes.items():
        if parent == os.getpid() and name.startswith(CORE):
            _kill([pid, *_below(pid, processes)])


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a process that this one started, if it still runs, and all processes below it."""
    if process.poll() is None:
        _kill([process.pid, *_below(process.pid, _processes())])
        process.wait()


@cache
def _load_client() -> None:
    """Import what the client would import in its first call: seconds of computing, in which no answer is missing."""
    with suppress(ImportError):
        import_module("wandb.apis.public")
        import_module("wandb.sdk.launch.inputs.internal")


@contextmanager
def _kills_core(seconds: float) -> Iterator[threading.Event]:
    """Kill the background service where the body has not ended after `seconds`; the event then is set."""
    late, ended, lock = threading.Event(), threading.Event(), threading.Lock()

    def expire() -> None:
        with lock:
            if not ended.is_set():
                late.set()
                kill_core()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # from Python 3.12 on no thread starts while the interpreter exits
        kill_core()
    try:
        yield late
    finally:
        with lock:
            ended.set()
        timer.cancel()


@contextmanager
def _hidden_secrets() -> Iterator[None]:
    """Hide the secrets of other programs from what the body starts, and have W&B report no errors of its own.

    W&B's background process would send all of SLURM_*, with SLURM_JWT among them; for its error reports a process waits
    when it ends.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    hidden = {name: value for name, value in os.environ.items() if is_secret(name) and not name.startswith("WANDB_")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _processes() -> dict[int, tuple[int, str]]:
    """Every process of this machine that has not ended: its number -> its parent's number and its name."""
    if not Path("/proc/self/stat").exists():
        done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat=,comm="], capture_output=True, text=True)
        lines = [line.split(None, 3) for line in done.stdout.splitlines()]
        return {int(pid): (int(parent), Path(name).name) for pid, parent, state, name in lines if state[0] != "Z"}
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended since
            front, _, rest = path.read_text(errors="replace").rpartition(")")
            state, parent = rest.split()[:2]
            if state != "Z":
                found[int(path.parent.name)] = int(parent), front.partition("(")[2]
    return found


def _below(top: int, processes: dict[int, tuple[int, str]]) -> list[int]:
    children = [pid for pid, (parent, _) in processes.items() if parent == top]
    return [pid for child in children for pid in (child, *_below(child, processes))]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
