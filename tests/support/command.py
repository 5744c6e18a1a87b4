"""Python processes for tests, such as the command `convrepro`, without the seconds that libraries load for.

Each is a fork of a process that has imported torch, Lightning, timm and W&B, and nothing of this package. It has the
environment, the folder and the outputs that it is given, and is killed like any other; only where imports are the
point, or a signal may come before them, a test takes `subprocess`.
"""

import atexit
import ctypes
import fcntl
import functools
import gc
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

LIBRARIES = ("torch", "torchvision", "lightning.pytorch", "timm", "torchmetrics", "fvcore.nn", "hydra", "pydantic")
LIBRARIES += ("wandb.apis.public", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2", "optuna")
TESTS = str(Path(__file__).parents[1])
CODE = f"import sys; sys.path.append({TESTS!r}); from support import command; command.serve()"
CONVREPRO = ("-m", "convrepro.cli")
REMOTE = Path(__file__).with_name("remote_python.py")
#: Variables with the server's folder, and the number of the process that it ends with.
SERVER, SESSION = "TESTS_SERVER", "TESTS_SESSION"
#: So many bytes the command line of a forked process can have.
LONGEST = 4000
#: Of the fields in /proc/self/stat behind the name, the one with the address of the command line.
ARGUMENTS = 45
#: Places of what Popen hands to `_execute_child`, and of the ends of pipes among it: in, out, errors.
CWD, ENV, NEW_SESSION, ENDS = 4, 5, 20, slice(9, 15)


def convrepro(
    *words: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """What `convrepro words` prints and how it ends. Raises subprocess.TimeoutExpired after `timeout` seconds."""
    texts = [*CONVREPRO, *map(str, words)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        with Python(texts, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=cwd, env=env) as process:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(texts, process.returncode, out.read(), errors.read())


class Python(subprocess.Popen):
    """`subprocess.Popen` of Python with these words: `-c code`, `-m module` or a file, and what comes after."""

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        super().__init__([sys.executable, *words], **options)

    def _execute_child(self, words: Sequence[str], *given: Any) -> None:
        request = {
            "words": list(words[1:]),
            "cwd": str(given[CWD] or Path.cwd()),
            "env": dict(os.environ if given[ENV] is None else given[ENV]),
            "session": bool(given[NEW_SESSION]),
        }
        stdin, to_stdin, from_stdout, stdout, from_stderr, stderr = given[ENDS]
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(_server())
        files = [file if file >= 0 else number for number, file in enumerate((stdin, stdout, stderr))]
        socket.send_fds(self._line, [json.dumps(request).encode()], files)
        self.pid = int(self._line.recv(16))
        self._child_created = True
        for ours, theirs in ((to_stdin, stdin), (from_stdout, stdout), (from_stderr, stderr)):
            if ours >= 0:
                os.close(theirs)

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if flags & os.WNOHANG and not select.select([self._line], [], [], 0)[0]:
            return 0, 0
        status = int(self._line.recv(16) or signal.SIGKILL)
        self._line.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def write_python(path: Path, *first: str) -> None:
    """Writes a program that is to its callers as Python with the words `first` is; its processes are such forks."""
    words = shlex.join([sys.executable, "-IS", str(REMOTE), _server(), *first])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)


@functools.cache
def _server() -> str:
    """The address of the server of all test processes of this session; the first that asks starts it."""
    folder, session = Path(os.environ[SERVER]), os.environ[SESSION]
    address = str(folder / "socket")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not Path(address).exists():
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("CONVREPRO_", "WANDB_"))}
            process = subprocess.Popen(
                [sys.executable, "-c", CODE, address, session, " " * LONGEST],
                env=clean,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
    return address


def begin_session() -> None:
    """Makes this process the one that the server ends with; processes that it starts, and theirs, share the server."""
    folder = tempfile.mkdtemp(prefix="convrepro-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {SERVER: folder, SESSION: str(os.getpid())}


def serve() -> None:
    """Forks a process for each request at the socket that the command line names, and one that waits for it, until the
    process of the session ends.
    """
    for name in LIBRARIES:
        __import__(name)
    gc.collect()
    gc.freeze()  # or each fork copies all of it when it collects
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    address, session = sys.argv[1:3]
    ended = os.pidfd_open(int(session))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while ended not in select.select([server, ended], [], [])[0]:
            line, _ = server.accept()
            data, files, _, _ = socket.recv_fds(line, 1 << 20, 3)
            if os.fork():
                for file in (line.detach(), *files):
                    os.close(file)
            else:
                server.close()
                _wait_for(json.loads(data), line, files)


def _wait_for(request: dict, line: socket.socket, files: Sequence[int]) -> None:
    """Forks the process of the request, and reports its number and how it ends. Whoever asked and takes it along
    where it dies says which signals are ignored.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        for file in (0, 1, 2, *files):
            os.close(file)
        line.send(str(pid).encode())
        if "ignored" in request and line in select.select([line, os.pidfd_open(pid)], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        with suppress(OSError):  # nobody may be left to hear it
            line.send(str(status).encode())
        os._exit(0)
    line.close()
    _become(request, files)


def _become(request: dict, files: Sequence[int]) -> None:
    """Makes this process the Python of the request, and ends it."""
    if request["session"]:
        os.setsid()
    for number in request.get("ignored", ()):
        signal.signal(number, signal.SIG_IGN)
    _show([sys.executable, *request["words"]])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    lines = 1 if "PYTHONUNBUFFERED" in os.environ else -1
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", lines, encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)
    sys.path.remove(TESTS)
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    how, *words = request["words"][request["words"][0] == "-P" :]  # no folder is on the path that -P keeps off
    try:
        if how == "-c":
            sys.argv[:] = ["-c", *words[1:]]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(words[0], "<string>", "exec"), main.__dict__)
        elif how == "-m":
            sys.argv[:] = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = [how, *words]
            runpy.run_path(how, run_name="__main__")
    except SystemExit as end:
        _end(end.code)
    except BaseException:
        traceback.print_exc()
        _end(1)
    _end(0)


def _end(code: object) -> None:
    """Ends this process as Python does, without the seconds in which it would take the libraries apart."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 120  # as Python's where an output cannot be written at its end
    os._exit((code or 0) & 0xFF)


def _show(words: Sequence[str]) -> None:
    """Makes these words the command line of this process, where others look for it."""
    text = b"".join(word.encode() + b"\0" for word in words)[:LONGEST]
    address = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[ARGUMENTS])
    ctypes.memmove(address, text.ljust(LONGEST, b"\0"), LONGEST)
