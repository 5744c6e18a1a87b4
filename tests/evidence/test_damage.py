"""Files that were edited by hand or damaged: each is named with its key and set aside, and the rest is served.

The damage is generated: in a valid file of each kind, every key in turn (of large files a sample) gets values that it
cannot have, or is dropped. The file is then either still valid, and whatever shows it works, or one sentence names it.
"""

import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from convrepro.cli.main import main
from convrepro.cluster.manifest import Entry, Request, Submission
from convrepro.cluster.site import load_site
from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError, SetAside
from convrepro.evidence import coverage_record, gpu_record, speed_record
from convrepro.evidence.collect import collect
from convrepro.evidence.store import evidence_path, load_evidence, load_proxies, read_rows
from convrepro.report import gpu_page, speed_page
from convrepro.report.coverage import render_page
from convrepro.report.html.content import section
from convrepro.runs.folder import state
from convrepro.runs.result import read_result
from convrepro.runs.summary import summary
from convrepro.tables import Table, list_tables, load_table, render_proxies, render_table
from support import small_table
from support.results import result

pytestmark = pytest.mark.unit

WRONG = (None, False, "99", "\x1b[31m\u202e", -1, 0.5, [], [3], {}, {"a": 3}, float("nan"), float("inf"), 10**400)
DROPPED = object()
#: Places of a file that are damaged.
SAMPLE = 25
ENTRY = {
    "index": 0,
    "table": "paper/small",
    "row": "plain",
    "seed": 0,
    "budget": "paper",
    "overrides": ["model=resnet18"],
    "run_id": "0" * 16,
    "folder": "runs/paper/small/plain/paper-seed0",
    "source": None,
    "commit": "0" * 40,
    "dirty": False,
}
REQUEST = {"table": "paper/small", "budget": "paper", "runs": [["plain", 0]], "overrides": ["a=b"], "flags": ["--x=y"]}


def places(content: Any, key: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys of everything in `content`, outermost first."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        yield (*key, name)
        yield from places(value, (*key, name))


def damages(content: Any) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The text of `content` with one thing wrong, and where; Python's JSON writes NaN as damaged files have it."""
    found = list(places(content))
    outer = [key for key in found if len(key) == 1]
    inner = [key for key in found if len(key) > 1]
    for key in outer + random.Random(0).sample(inner, min(SAMPLE, len(inner))):
        owner = content
        for part in key[:-1]:
            owner = owner[part]
        value = owner[key[-1]]
        for wrong in (*WRONG, DROPPED):
            if wrong is not DROPPED:
                owner[key[-1]] = wrong
            elif isinstance(owner, dict):
                del owner[key[-1]]
            yield key, json.dumps(content)
            if isinstance(owner, dict) and wrong is DROPPED:
                rest = dict(owner)
                owner.clear()
                owner.update({**rest, key[-1]: value})
            else:
                owner[key[-1]] = value


@dataclass
class Kind:
    """A kind of file: a valid one, where it is, and what shows it."""

    content: Any
    path: Path
    show: Callable[[], object]


def table(root: Path) -> Table:
    return load_table("paper/small", small_table.write(root, small_table.SMALL))


def the_result(folder: Path) -> Kind:
    small = table(folder / "tables")
    row = small.row("plain")
    path = folder / "runs/paper/small/plain/paper-seed0/result.json"

    def show() -> None:
        found = state(path.parent)
        assert found.kind in ("failed", "done")
        collected = collect(small, folder / "runs", {}, folder / "tables")
        assert len(collected.accepted) + len(collected.proxies) + len(collected.refused) >= 1
        evidence_path(small.name, folder / "tables").unlink()
        if content := read_result(path.parent):
            summary(content, small)
            render_table(small, {}, {"plain": {0: content}})

    return Kind(result(small.name, "plain", small.overrides(row)), path, show)


def the_evidence(folder: Path) -> Kind:
    small = table(folder)
    runs = folder / "runs/paper/small/plain"
    for seed, budget in ((0, "paper"), (1, "paper"), (0, "proxy")):
        made = runs / f"{budget}-seed{seed}"
        made.mkdir(parents=True)
        found = result(small.name, "plain", small.overrides(small.row("plain")), seed=seed, budget=budget)
        (made / "result.json").write_text(json.dumps(found))
    path = collect(small, folder / "runs", {"plain": {"macs": 7_000_000}}, folder).path

    def show() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SetAside)
            try:
                statics, results = load_evidence(small, folder)
            except SetAside as aside:
                raise ConvReproError(str(aside)) from None
        proxies = load_proxies(small, folder)
        for style in ("text", "markdown"):
            render_table(small, statics, results, style)
        render_proxies(small, proxies)
        section(small, statics, results, proxies, ())

    return Kind(json.loads(path.read_text()), path, show)


def the_records(module: Any, name: str, page: Any) -> Callable[[Path], Kind]:
    def kind(folder: Path) -> Kind:
        path = folder / name

        def show() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SetAside)
                try:
                    page.render(module.records(folder))
                except SetAside as aside:
                    raise ConvReproError(str(aside)) from None

        return Kind(json.loads((REPRODUCTIONS / module.FOLDER / name).read_text()), path, show)

    return kind


def the_coverage(folder: Path) -> Kind:
    path = folder / "coverage.json"
    content = json.loads(coverage_record.RECORD.read_text())
    content["networks"] = dict(list(content["networks"].items())[:3])
    return Kind(content, path, lambda: render_page(coverage_record.read_record(path)))


def the_manifest(folder: Path) -> Kind:
    return Kind(dict(ENTRY), folder / "manifest.jsonl", lambda: Submission(folder).entries)


def the_request(folder: Path) -> Kind:
    return Kind(json.loads(json.dumps(REQUEST)), folder / "request.json", lambda: Submission(folder).request)


def the_site(folder: Path) -> Kind:
    path = folder / "site.yaml"
    content = {"sbatch": {"partition": "gpu", "time": "1:00:00"}, "setup": ["true"], "python": "python"}
    return Kind(content, path, lambda: load_site((), {"CONVREPRO_SLURM_SITE": str(path)}))


SPEEDS = sorted(path.name for path in (REPRODUCTIONS / speed_record.FOLDER).glob("*.json"))
KINDS = {
    "result": the_result,
    "evidence": the_evidence,
    "manifest": the_manifest,
    "request": the_request,
    "site": the_site,
    "coverage": the_coverage,
    **{name: the_records(speed_record, name, speed_page) for name in SPEEDS[:1] + SPEEDS[-1:]},
    "gpu correctness": the_records(gpu_record, "h100-1-correctness.json", gpu_page),
    "gpu speed": the_records(gpu_record, "h100-1-speed.json", gpu_page),
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_wrong_in_a_file_is_named_or_harmless(kind, tmp_path):
    made = kind(tmp_path)
    made.path.parent.mkdir(parents=True, exist_ok=True)
    made.path.write_text(json.dumps(made.content))
    made.show()
    named = 0
    for key, text in damages(made.content):
        made.path.write_text(text)
        try:
            made.show()
        except ConvReproError as error:
            named += 1
            where = str(error)
            assert "\n" not in where
            assert "\x1b" not in where
            if made.path.suffix != ".yaml":  # whose flags are named as sbatch has them
                assert made.path.name in where, (key, where)
                assert any(str(part) in where for part in key) or "a case without" in where, (key, where)
        except Exception as error:
            raise AssertionError(f"{key} in {text[:300]}") from error
    assert named > 10 or made.path.name == "result.json"  # whose errors `state` and `collect` report


@pytest.mark.parametrize("ruin", ["torn", "latin", "folder", "pipe", "deep", "empty"])
def test_a_ruined_file_is_set_aside_and_the_others_are_served(ruin, tmp_path, capsys):
    small = table(tmp_path)
    other = load_table("paper/other", small_table.write(tmp_path, small_table.SMALL, "paper/other"))
    runs = tmp_path / "runs"
    for name in (small.name, other.name):
        made = runs / name / "plain/paper-seed0"
        made.mkdir(parents=True)
        (made / "result.json").write_text(json.dumps(result(name, "plain", small.overrides(small.row("plain")))))
        collect(load_table(name, tmp_path), runs, {}, tmp_path)
    for path in (evidence_path(small.name, tmp_path), runs / small.name / "plain/paper-seed0/result.json"):
        content = path.read_bytes()
        path.unlink()
        match ruin:
            case "torn":
                path.write_bytes(content[: len(content) // 2])
            case "latin":
                path.write_bytes(content.replace(b"plain", b"pl\xe4in"))
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "deep":
                path.write_bytes(b"[" * 100_000)
            case "empty":
                path.write_bytes(b"")
    with pytest.warns(SetAside, match=r"paper/results/small\.json.*set aside") as told:
        assert not any(load_evidence(small, tmp_path)[1].values())
    assert len(told) == 1
    assert load_evidence(other, tmp_path)[1]["plain"][0]["metrics"]["last"]["top1"] == 90
    with pytest.raises(ConvReproError, match=r"small\.json"):
        collect(small, runs, {}, tmp_path)
    found = state(runs / small.name / "plain/paper-seed0")
    assert found.kind == "failed"
    assert "result.json" in (found.error or "")
    assert collect(other, runs, {}, tmp_path).accepted == ("plain/paper-seed0",)


@pytest.mark.parametrize("name", list_tables())
def test_evidence_is_written_again_as_it_is(name, tmp_path):
    """Committed evidence, of older versions too, is read whole: nothing in it is dropped or changed."""
    path = evidence_path(name)
    if path.exists():
        content = json.loads(path.read_text())
        copy = evidence_path(name, tmp_path)
        copy.parent.mkdir(parents=True)
        copy.write_text(json.dumps(content))
        assert json.dumps(read_rows(name, tmp_path), sort_keys=True) == json.dumps(content["rows"], sort_keys=True)


def test_a_typo_among_tables_to_collect_is_told_before_any_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("convrepro.evidence.collect.collect", lambda *_: pytest.fail("a table was collected"))
    with pytest.raises(SystemExit) as stop:
        main(["collect", "deepshift/mnist_v5", "deepshift/typo", "--runs", str(tmp_path)])
    assert stop.value.code == 2
    assert "there is no table 'deepshift/typo'" in capsys.readouterr().err


def test_what_is_set_aside_is_one_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit):
        main(["list", "budgets"])
    line = warnings.formatwarning(SetAside("runs/a\x1b[31m.json: seed=false; set aside"), SetAside, "a.py", 1)
    assert line == "convrepro: runs/a\\x1b[31m.json: seed=false; set aside\n"


def test_the_manifest_here_is_one_of_now():
    assert set(Entry.model_fields) == set(ENTRY)
    assert set(Request.model_fields) == set(REQUEST)
