"""The command `convrepro`, typed by tests: in a process of its own, but without the seconds that libraries load for.

The process is a fork of one that has imported torch, Lightning and timm, and nothing of this package. What is tested is
the command as it starts, with the environment and the folder that it is given; a process that is to be killed, or whose
imports are the point, is started with `subprocess`.
"""

import atexit
import functools
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LIBRARIES = ("torch", "torchvision", "lightning.pytorch", "timm", "torchmetrics", "fvcore.nn", "hydra", "pydantic")
TESTS = str(Path(__file__).parents[1])
CODE = f"import sys; sys.path.append({TESTS!r}); from support import command; command.serve()"


def convrepro(
    *words: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """What `convrepro words` prints and how it ends. Raises subprocess.TimeoutExpired after `timeout` seconds."""
    texts = [str(word) for word in words]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(timeout)
            line.connect(_server().address)
            request = {"words": texts, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
            socket.send_fds(line, [json.dumps(request).encode() + b"\n"], [out.fileno(), errors.fileno()])
            try:
                status = line.recv(16)
            except TimeoutError as error:
                os.killpg(_server().process.pid, signal.SIGKILL)
                _server.cache_clear()
                raise subprocess.TimeoutExpired(["convrepro", *texts], timeout) from error
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(["convrepro", *texts], int(status), out.read(), errors.read())


class Server(NamedTuple):
    process: subprocess.Popen
    address: str


@functools.cache
def _server() -> Server:
    """This test process's server, which is started for the first command and ends with the tests."""
    folder = tempfile.mkdtemp(prefix="convrepro-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = f"{folder}/socket"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CONVREPRO_", "WANDB_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, address],
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(process.wait)
    atexit.register(process.terminate)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return Server(process, address)


def serve() -> None:
    """Forks a process for each request at the socket that the command line names."""
    for name in LIBRARIES:
        __import__(name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        print("ready", flush=True)
        while True:
            line, _ = server.accept()
            data, files, _, _ = socket.recv_fds(line, 1 << 20, 2)
            while not data.endswith(b"\n"):
                data += line.recv(1 << 20)
            if pid := os.fork():
                line.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                line.close()
                for file in files:
                    os.close(file)
            else:
                server.close()
                line.close()
                _become(json.loads(data), *files)


def _become(request: dict, out: int, errors: int) -> None:
    """Makes this process the command of the request, and ends it."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(errors, 2)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path.remove(TESTS)
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv[:] = ["convrepro", *request["words"]]
    runpy.run_module("convrepro.cli", run_name="__main__", alter_sys=True)
