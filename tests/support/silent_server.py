"""Servers on the loopback that give no answer: one refuses, one accepts and says nothing, one answers byte by byte."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.command import Python
from support.wandb_server import KEY

KINDS = ("refuses", "accepts", "drips")
#: Seconds between two bytes of an answer that never ends.
DRIP = 0.2
#: Seconds after which a process that should have ended has failed; no test waits so long otherwise.
DEADLINE = 300


class SilentServer:
    """One of the kinds; `contact` is when the first client connected, by the monotonic clock."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.contact: float | None = None
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "SilentServer":
        if self.kind == "refuses":
            self._listener.close()
        else:
            threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for each in (self._listener, *self._open):
            each.close()

    def environment(self) -> dict[str, str]:
        """The variables that lead a client here, with a key."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": "tester"}

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.contact = self.contact or time.monotonic()
                self._open.append(connection)
                if self.kind == "drips":
                    threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(DRIP)


class Watched:
    """`convrepro` in a process of its own, led to a server; `lines` are its output with the time of each."""

    def __init__(self, words: Sequence[str], server: SilentServer, home: Path, first: str = "", **more: str) -> None:
        self.server = server
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        places = {f"WANDB_{kind}_DIR": str(home / "wandb") for kind in ("CONFIG", "CACHE", "DATA")}
        environment = {
            **clean,
            **places,
            "HOME": str(home),
            "WANDB_SILENT": "true",
            "PYTHONUNBUFFERED": "1",
            **server.environment(),
            **more,
        }
        code = f"import sys\n{first}\nfrom convrepro.cli.main import main\nmain(sys.argv[1:])"
        self.process = Python(
            ["-c", code, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[tuple[float, str]] = []
        self.end = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Read until the process, and whatever it started, has closed the output."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))
        self.process.wait()
        self.end = time.monotonic()

    def ended(self) -> int:
        """The exit code, once the process has ended and nothing that it started holds its output."""
        self._reader.join(DEADLINE)
        if not self.end:
            self.process.kill()
            raise AssertionError(f"{self.process.args} did not end:\n{self.output}")
        return self.process.returncode

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def said(self, pattern: str) -> list[float]:
        """When the lines in which `pattern` is found were printed."""
        return [when for when, line in self.lines if re.search(pattern, line)]


@contextmanager
def busy_machine(processes: int = 1) -> Iterator[None]:
    """Processes that compute without pause beside the test."""
    loads = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for load in loads:
            load.kill()
            load.wait()
