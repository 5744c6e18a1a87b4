"""A W&B server on the loopback that wandb's real client takes for one: it stores what it is sent, for tests to read.

    with WandbServer() as server:
        ...  # a process with `server.environment()` in its environment
        run = server.run("the run's id")
        run.config, run.summary, run.history(), run.state

It answers as the real one does where it matters here: a run that is resumed learns its step, summary and number of
lines; lines are stored by their offset, so that a chunk that is sent twice is there once; a run that was marked
preempting and then exits with a non-zero code is `preempted`. What it does not know, or fails at, is kept in `unknown`
and answered with an error that clients do not try again. `down()`, `slow(seconds)` and `breaks()` make it misbehave
from then on, `recovers()` ends that.

It speaks the protocol of wandb 0.31: the names of operations and the shapes of their variables move with versions.
"""

import base64
import gzip
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from support.wandb_answers import ENTITY, RunRecord
from support.wandb_sweeps import SweepAnswers

KEY = "5ec2e7" + "0123456789" * 4
#: Seconds after which a connection on which nothing comes is given up.
IDLE = 60


class WandbServer(SweepAnswers):
    """See the module. Safe to read while a client talks to it."""

    def __init__(self, key: str = KEY) -> None:
        super().__init__()
        self.key = key
        self.uploads: dict[str, bytes] = {}
        self.traffic: list[bytes] = []
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._delay = 0.0
        self._broken = False
        self._connections: set[socket.socket] = set()
        self._listener: ThreadingHTTPServer | None = None
        self.port = 0

    def __enter__(self) -> "WandbServer":
        self.recovers()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """The variables that lead a client here, online and with a key."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.key, "WANDB_MODE": "online", "WANDB_ENTITY": ENTITY}

    def down(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        listener.shutdown()
        listener.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def slow(self, seconds: float) -> None:
        """Answer each request only after so many seconds, from now on."""
        self._delay = seconds

    def breaks(self) -> None:
        """Answer 500 from now on."""
        self._broken = True

    def recovers(self) -> None:
        """Answer as it should, on the port that it had."""
        self._broken, self._delay = False, 0.0
        if self._listener is None:
            self._listener = _Listener(("127.0.0.1", self.port), _handler(self))
            self.port = self._listener.server_address[1]
            threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def run(self, run_id: str) -> RunRecord:
        """The run of this id; KeyError names those that are there."""
        with self._lock:
            if run_id not in self.runs:
                raise KeyError(f"no run {run_id!r}; there are {sorted(self.runs)}; unknown operations: {self.unknown}")
            return self.runs[run_id]

    def everything(self) -> bytes:
        """All that any client ever sent, the Authorization header left out: to search for what must not be there."""
        with self._lock:
            return b"\n".join(self.traffic)

    # What a request does

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Status and JSON-ready answer to a request."""
        with self._lock:
            shown = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            self.traffic.append(f"{method} {path} {json.dumps(shown)}\n".encode() + body)
        self._stop.wait(self._delay)
        if self._broken:
            return 500, {"error": "told to break"}
        with self._lock:
            if method == "PUT":
                self._store(unquote(path.removeprefix("/upload/")), body)
                return 200, {}
            if path.startswith("/sdk/"):
                return 200, {}
            if headers.get("Authorization", "") != "Basic " + base64.b64encode(f"api:{self.key}".encode()).decode():
                return 401, {"errors": [{"message": "the key is not right"}]}
            if path == "/graphql":
                return 200, self._graphql(json.loads(body))
            if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
                return 200, self._file_stream(self.runs[stream[1]], json.loads(body))
            raise LookupError("no such page")

    def _store(self, place: str, body: bytes) -> None:
        self.uploads[place] = body
        owner, _, name = place.partition("/")
        if owner in self.runs:
            self.runs[owner].files[name] = body
        elif owner in self.artifacts and name == "manifest":
            self.artifacts[owner].manifest = json.loads(body)

    def _file_stream(self, run: RunRecord, sent: dict[str, Any]) -> dict[str, Any]:
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
                continue
            lines = run.lines.setdefault(name, {})
            lines.update(enumerate(chunk["content"], chunk["offset"]))
        if sent.get("preempting"):
            run.state, run.was_preempting = "preempting", True
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
            lost = "preempted" if run.state == "preempting" else "failed"
            run.state = lost if run.exit_code else "finished"
        return {"exitcode": None, "limits": {}}

    def _graphql(self, sent: dict[str, Any]) -> dict[str, Any]:
        name = sent.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])[1]
        return self.graphql(name, sent.get("variables") or {})


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = IDLE

        def setup(self) -> None:
            server._connections.add(self.request)
            super().setup()

        def finish(self) -> None:
            server._connections.discard(self.request)
            super().finish()

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                return  # the other side went away, or `down` cut the line

        def serve(self) -> None:
            path = urlsplit(self.path).path
            try:
                status, answer = server.respond(self.command, path, dict(self.headers), self.body())
            except (LookupError, TypeError, ValueError) as error:
                server.unknown.append(f"{self.command} {path}: {error!r}")
                status, answer = 404, {"errors": [{"message": repr(error)}]}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = serve

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                raw = b"".join(parts)
            else:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def log_message(self, *words: object) -> None:
            return

    return Handler
