"""What is in a run's folder besides result and checkpoints: who trains it, how far it is, why it failed."""

import fcntl
import json
import os
import socket
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.strict import ON_DISK, read_file
from convrepro.errors import Busy, ConvReproError, Interrupted
from convrepro.runs.result import Result, read_result
from convrepro.runs.storage import NO_LOCKS, PART, write_json

PROGRESS, ERROR, LOCK = "progress.json", "error.txt", ".lock"
#: Descriptors of the locks that this process holds.
_locks: set[int] = set()


@with_config(ON_DISK)
class Written(TypedDict):
    """What `progress.json` says: how far the run is, and which process of which job is at it."""

    epoch: NotRequired[int]
    epochs: NotRequired[int]
    step: NotRequired[int]
    images_per_second: NotRequired[float | None]
    left_seconds: NotRequired[int | None]
    restarts: NotRequired[int]
    pid: NotRequired[int]
    host: NotRequired[str]
    job: NotRequired[str | None]
    updated: NotRequired[str]


@dataclass(frozen=True)
class RunState:
    """What a run's folder tells about it.

    kind: "none" (never started), "started" (running, waiting to be resumed, or killed; the folder cannot tell which),
    "failed" (the last attempt ended with an error, or its result cannot be read) or "done".
    progress: what `progress.json` says of a run that is not done, where it is there; error: the last line of
    `error.txt` or a sentence; result: the content of `result.json` where the run is done.
    """

    kind: Literal["none", "started", "failed", "done"]
    progress: dict[str, Any] | None = None
    error: str | None = None
    result: Result | None = None


def state(folder: Path) -> RunState:
    """The state of the run in `folder`; damaged or missing files are reported in it and raise nothing."""
    try:
        result = read_result(folder)
    except (ConvReproError, OSError) as error:
        return RunState("failed", _progress(folder), str(error))
    if result is not None:
        return RunState("done", result=result)
    progress = _progress(folder)
    with suppress(OSError):
        lines = (folder / ERROR).read_text(errors="replace").split("\n")
        return RunState("failed", progress, next((line for line in reversed(lines) if line.strip()), "unknown error"))
    started = progress is not None or any(folder.glob("*.ckpt"))
    return RunState("started" if started else "none", progress)


def _progress(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(read_file(Written, folder / PROGRESS))
    except ConvReproError:
        return None


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the one process that trains in `folder`; it is created where it is missing.

    The lock is the kernel's and ends with the process, however that ends. What an earlier attempt left (its error,
    files cut off while they were written) is removed, and an error that leaves the block is recorded; an interruption
    is none. Raises Busy where another process holds the folder, ConvReproError where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConvReproError(f"{folder} cannot be written ({error.strerror})") from error
    _locks.add(lock)
    try:
        _lock(lock, folder)
        for left in (folder / ERROR, *folder.glob(f".*{PART}")):
            left.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            if not isinstance(error, Interrupted):
                record_error(folder, error)
            raise
    finally:
        _locks.discard(lock)
        os.close(lock)


def _lock(lock: int, folder: Path) -> None:
    """Lock the open file and write into it whose it is."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(
            f"{folder} is being trained by {_holder(lock)}; wait for it, or stop it first and run this again"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ConvReproError(f"{folder / LOCK} cannot be locked ({error.strerror})") from error
        warnings.warn(f"{folder} is on a file system without locks: a second process would go unnoticed", stacklevel=2)
    with suppress(OSError):  # of a full disk; the lock holds without it
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({**_process(), "since": _now()}).encode(), 0)


def _holder(lock: int) -> str:
    try:
        holder = json.loads(os.pread(lock, 4096, 0))
        job = f" (job {holder['job']})" if holder["job"] else ""
        return f"pid {holder['pid']} on {holder['host']}{job} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _let_go() -> None:
    """A forked child is no holder: a worker that outlives its killed parent must not keep the lock."""
    for lock in _locks:
        with suppress(OSError):
            os.close(lock)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)


def busy(folder: Path) -> bool:
    """Whether a process is training in `folder` now; False where its file system cannot tell."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(lock)
    return False


def record_error(folder: Path, error: BaseException) -> None:
    """Write to `error.txt` why the run failed: a sentence, or a traceback and, as the last line, what it comes to.

    `hold` does this for what is raised inside it. For errors from before (a configuration that does not compose) the
    caller may; never for Busy, for the folder is another's then. The first word stands: of several processes it is the
    cause, and what the others meet its consequence. Where even this cannot be written it is left out.
    """
    summary = " ".join(str(error).split())
    if not isinstance(error, ConvReproError):
        trace = "".join(traceback.format_exception(error))
        summary = f"{trace}\n{type(error).__name__}: {summary}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ERROR).open("x") as file:
            file.write(f"{summary}\n")


def write_progress(folder: Path, **values: Any) -> None:
    """Write `progress.json`: `values`, and which process of which job this is; left out where it cannot be written."""
    with suppress(ConvReproError):
        write_json(folder / PROGRESS, {**_process(), "restarts": _restarts(), **values, "updated": _now()})


def rank() -> int:
    """The number of this process among those that train one run together, as their launcher tells it; else 0."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def _process() -> dict[str, Any]:
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")
    return {"pid": os.getpid(), "host": socket.gethostname(), "job": job}


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
