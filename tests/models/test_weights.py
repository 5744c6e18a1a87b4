"""Checkpoints from files and from a real server: fetched once, checked, and nothing left of what fails."""

import hashlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch

from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.evidence.collect import collect
from convrepro.models.build import build
from convrepro.models.weights import locate
from convrepro.runs.plan import plan
from convrepro.tables import load_table
from convrepro.training.run import run

pytestmark = pytest.mark.unit

STANDARD = {"name": "standard", "where": "dense_kxk"}


class Server(ThreadingHTTPServer):
    """Serves `files` by path and counts what it is asked for; `harm` is what happens halfway through an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.harm = lambda: None

    def put(self, name: str, content: bytes) -> str:
        self.files[f"/{name}"] = content
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if self.server.harm() is None:
            self.wfile.write(content[half:])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Torch hub's folder for checkpoints, empty and not yet made."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_url_is_fetched_once_and_checked_by_the_digits_in_its_name(server, cache):
    url = server.put(f"net-{DIGEST[:8]}.pth", CONTENT)
    path = locate(url)
    assert path == cache / f"net-{DIGEST[:8]}.pth"
    assert path.read_bytes() == CONTENT
    assert locate(url) == path
    assert len(server.asked) == 1
    assert [p.name for p in cache.iterdir()] == [path.name]


@pytest.mark.parametrize("digits", [8, 20, 64])
def test_a_name_without_digits_needs_them_given_and_files_of_one_name_do_not_meet(server, cache, digits):
    url = server.put("folder/net.th", CONTENT)
    with pytest.raises(ConvReproError, match=rf"weights {url} need weights_sha256"):
        locate(url)
    assert server.asked == []
    assert locate(url, DIGEST[:digits].upper()).read_bytes() == CONTENT
    other = b"another file of this name"
    again = locate(server.put("other/net.th", other), hashlib.sha256(other).hexdigest())
    assert again.read_bytes() == other
    assert len(list(cache.iterdir())) == 2


def test_given_digits_come_before_those_of_the_name(server, cache):
    url = server.put("net-01234567.pth", CONTENT)
    assert locate(url, DIGEST).name == f"net-01234567-{DIGEST[:8]}.pth"
    with pytest.raises(ConvReproError, match="are not what they were"):
        locate(url)


def test_a_file_url_and_one_with_a_query(tmp_path, server, cache):
    source = tmp_path / f"net file-{DIGEST[:8]}.pth"
    source.write_bytes(CONTENT)
    assert locate(source.as_uri()) == cache / source.name
    assert locate(server.put(f"net-{DIGEST[:10]}.pth?raw=1", CONTENT)) == cache / f"net-{DIGEST[:10]}.pth"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("another file", "are not what they were or were cut short: .*try again, or .* weights_sha256"),
        ("cut short", "are not what they were or were cut short"),
        ("missing", "cannot be fetched: HTTP Error 404.*give a file by weights, or put the file at "),
        ("unreachable", "cannot be fetched: .*refused"),
        ("missing file", "cannot be fetched: "),
    ],
)
def test_a_download_that_fails_is_one_sentence_and_leaves_nothing(tmp_path, server, cache, case, reason):
    url = server.put(f"net-{DIGEST[:8]}.pth", CONTENT)
    if case == "another file":
        server.put(f"net-{DIGEST[:8]}.pth", CONTENT[::-1])
    elif case == "cut short":
        server.harm = lambda: "close"
    elif case == "missing":
        server.files.clear()
    elif case == "unreachable":
        url = url.replace(str(server.server_port), str(closed_port()))
    else:
        url = (tmp_path / f"none-{DIGEST[:8]}.pth").as_uri()
    with pytest.raises(ConvReproError, match=reason) as error:
        locate(url)
    assert url in str(error.value)
    assert "\n" not in str(error.value)
    assert list(cache.iterdir()) == []


@pytest.fixture
def listening():
    """Ctrl-C is heard, also where a shell started this in the background and had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_download_leaves_nothing(server, cache, listening):
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    server.harm = interrupt
    with pytest.raises(KeyboardInterrupt):
        locate(server.put(f"net-{DIGEST[:8]}.pth", CONTENT))
    assert list(cache.iterdir()) == []


def test_a_fetched_file_is_checked_again_each_time(server, cache):
    url = server.put(f"net-{DIGEST[:8]}.pth", CONTENT)
    path = locate(url)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ConvReproError, match=rf"{path} have the sha256 .*, not {DIGEST[:8]}; delete it to fetch {url}"):
        locate(url)


def test_a_folder_that_cannot_be_made_is_told(server, cache):
    cache.parent.parent.touch()
    with pytest.raises(ConvReproError, match=r"cannot be fetched: .*torch"):
        locate(server.put(f"net-{DIGEST[:8]}.pth", CONTENT))


def test_the_digest_of_a_local_file(tmp_path):
    path = tmp_path / "net-00000000.pth"
    path.write_bytes(CONTENT)
    assert locate(path) == locate(path, DIGEST) == path, "a local name says nothing"
    with pytest.raises(ConvReproError, match=rf"{path} have the sha256 {DIGEST}, not 01234567; it is another file"):
        locate(path, "01234567")
    with pytest.raises(ConvReproError, match=r"none.pth do not exist"):
        locate(tmp_path / "none.pth", DIGEST)


@pytest.mark.parametrize("digest", ["0123456", "g" * 8, "0" * 65, 12345678])
def test_what_is_no_digest(tmp_path, digest):
    with pytest.raises(ConvReproError, match=rf"weights_sha256={digest!r} must be the first 8 to 64 hexadecimal"):
        locate(tmp_path, digest)


def test_other_schemes(cache):
    with pytest.raises(ConvReproError, match="cannot be fetched by s3; valid: http, https, file"):
        locate(f"s3://bucket/net-{DIGEST[:8]}.pth")


def checkpoint(folder: Path) -> Path:
    """A checkpoint in the published form, its name ending in its own digits."""
    torch.manual_seed(0)
    state = timm.create_model("deepshift_mnist_fc").state_dict()
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 10.0}, folder / "net.th")
    digest = hashlib.sha256((folder / "net.th").read_bytes()).hexdigest()
    return (folder / "net.th").rename(folder / f"net-{digest[:8]}.th")


def test_a_network_takes_its_weights_from_a_url(tmp_path, server, cache):
    path = checkpoint(tmp_path / "published")
    url = server.put(path.name, path.read_bytes())
    kwargs = {"conv": STANDARD, "num_classes": 10, "in_chans": 1}
    fetched, _ = build("deepshift_mnist_fc", weights=url, **kwargs)
    local, _ = build("deepshift_mnist_fc", weights=str(path), **kwargs)
    assert all(
        torch.equal(a, b) for a, b in zip(fetched.state_dict().values(), local.state_dict().values(), strict=True)
    )
    with pytest.raises(ConvReproError, match=rf"weights {url} do not fit resnet20_cifar"):
        build("resnet20_cifar", weights=url, conv=STANDARD, num_classes=10)


TABLE = """\
title: Evaluation alone
source: {{paper: paper, arxiv: "1234.56789", table: 1}}
question: what do published weights score?
base: [model=deepshift_mnist_fc, recipe=deepshift_mnist_v1, train=false]
seeds: [0]
metrics:
  top1: {{unit: "%", tol: 0.3, why: one run}}
rows:
  - {{id: original, label: Original, overrides: [conv=standard, &url "weights={url}"]}}
  - {{id: converted, label: Converted, overrides: [conv=shift, conv.variant=v1, *url]}}
"""


@pytest.mark.heavy
def test_rows_that_evaluate_a_published_checkpoint_run_and_are_evidence(tmp_path, server, cache):
    path = checkpoint(tmp_path / "published")
    url = server.put(path.name, path.read_bytes())
    root, runs = tmp_path / "reproductions", tmp_path / "runs"
    (root / "paper").mkdir(parents=True)
    (root / "paper" / "table1.yaml").write_text(TABLE.format(url=url))
    table = load_table("paper/table1", root)
    extra = ["trainer=cpu", "logger=none"]
    jobs = plan(table, budget="paper", rows=[], seeds=[0], extra=extra, runs=runs)
    results = [run(compose_config(job.overrides), job.overrides, echo=lambda line: None) for job in jobs]
    assert len(server.asked) == 1
    assert all(f"weights={url}" in result["overrides"] for result in results)
    assert [result["history"] for result in results] == [[], []]
    assert results[1]["static"]["multiplications"] == 0 < results[0]["static"]["multiplications"]

    shutil.rmtree(cache)
    words = [*jobs[0].overrides, f"runs={tmp_path / 'again'}", f"weights={path}", "table=null", "row=null"]
    again = run(compose_config(words), words, echo=lambda line: None)
    assert again["metrics"] == results[0]["metrics"]

    for job, result in zip(jobs, results, strict=True):
        result["environment"] |= {"commit": "0" * 40, "dirty": False}
        (job.folder / "result.json").write_text(json.dumps(result))
    assert len(collect(table, runs, {}, root).refused) == 0
    results[1]["config"]["weights"] = str(path)
    (jobs[1].folder / "result.json").write_text(json.dumps(results[1]))
    [(name, reason)] = collect(table, runs, {}, root).refused
    assert (name, reason) == ("converted/paper-seed0", f"it did not start from {url}")
