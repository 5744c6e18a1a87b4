"""Counts at hand: from the table's evidence, from the cache of the user, and counted where neither has them."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from convrepro.config import plugins
from convrepro.errors import ConvReproError
from convrepro.evidence import count_cache
from convrepro.evidence.collect import collect
from convrepro.evidence.cores import MANY
from convrepro.evidence.count_cache import CountCache
from convrepro.evidence.counts import forget, row_count
from convrepro.evidence.statics import count_tables, lacking
from convrepro.evidence.store import evidence_path, load_evidence
from convrepro.tables import Table, load_table
from support.command import convrepro
from support.small_table import SMALL, write


def ranks(root: Path, number: int, last: str = "") -> Table:
    """A table of ResNet-20 with so many ranks of low-rank convolutions."""
    head = SMALL.partition("rows:")[0].replace("resnet18", "resnet20_cifar").replace("base_row: plain", "base_row: r1")
    rows = [f"  - {{id: r{n}, label: R, overrides: [conv=low_rank, conv.rank=0.{n:02}]}}" for n in range(1, number + 1)]
    write(root, "\n".join([head + "rows:", *rows, last]))
    return load_table("paper/small", root)


def changed(folder: Path, total: int) -> None:
    """The totals of all that is cached become this."""
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), str(total))))


def test_what_is_cached_is_not_counted_again_until_a_source_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVREPRO_CACHE", str(tmp_path / "cache"))
    table = ranks(tmp_path / "tables", 2)
    first = count_tables([table])
    assert first["paper/small"]["r1"] == {"macs": row_count(table, table.row("r1")).total("conv_fc")}
    assert count_tables([table]) == first
    changed(tmp_path / "cache", 7)
    assert count_tables([table])["paper/small"]["r1"] == {"macs": 7}

    own = tmp_path / "own" / "recipe"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# Mine\nepochs: 1\n")
    monkeypatch.setenv("CONVREPRO_CONFIG_DIR", str(own.parent))
    assert count_tables([table]) == first
    changed(tmp_path / "cache", 8)
    assert count_tables([table])["paper/small"]["r1"] == {"macs": 8}
    (own / "mine.yaml").write_text("# Mine\nepochs: 2\n")
    count_cache._sources.cache_clear()  # as in the next process
    assert count_tables([table]) == first


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", '{"conv_fc": "a"}', '{"conv_fc": [1]}', '{"params": "1"}', "\0"]
)
def test_a_damaged_entry_is_counted_anew(tmp_path, damage):
    table, cache = ranks(tmp_path, 1), CountCache(tmp_path / "cache")
    first = count_tables([table], cache=cache)
    (file,) = cache.folder.iterdir()
    file.write_text(damage)
    assert count_tables([table], cache=cache) == first
    assert json.loads(file.read_text())["conv_fc"] == str(first["paper/small"]["r1"]["macs"])


def test_a_cache_that_cannot_be_written_keeps_nothing_and_loses_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    table = ranks(tmp_path, 1)
    assert count_tables([table], cache=CountCache(tmp_path / "file" / "cache"))["paper/small"]["r1"]["macs"] > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=my_package.models:factory"],
        ["model=resnet18", "conv=plan", "conv.entries=mine.yaml"],
        ["model=resnet18", "conv=plan", "+conv.entries='mine.yaml'"],
        ["model=resnet18", "+model_args.width=${oc.env:WIDTH}"],
    ],
)
def test_what_the_words_do_not_say_whole_is_counted_each_time(tmp_path, overrides):
    cache = CountCache(tmp_path / "cache")
    cache.put(overrides, "", {"macs": 1})
    assert cache.get(overrides, "") is None
    assert not cache.folder.exists()


def test_a_plan_in_the_words_is_kept(tmp_path):
    cache, overrides = CountCache(tmp_path / "cache"), ["model=resnet18", "conv=plan", "conv.entries=[{name: shift}]"]
    cache.put(overrides, "", {"macs": 1})
    assert cache.get(overrides, "") == {"macs": 1}


def test_a_file_with_a_plan_is_read_at_each_count(tmp_path):
    file = tmp_path / "mine.yaml"
    write(tmp_path, SMALL.partition("rows:")[0].replace("resnet18", "resnet20_cifar").replace("_row: plain", "_row: a")
          + f"rows:\n  - {{id: a, label: A, overrides: [conv=plan, conv.entries={file}]}}\n")  # fmt: skip
    table, cache, found = load_table("paper/small", tmp_path), CountCache(tmp_path / "cache"), []
    for p in (2, 4):
        file.write_text(f"- {{name: hetconv, p: {p}}}\n")
        forget()
        found.append(count_tables([table], cache=cache)["paper/small"]["a"]["macs"])
    assert found[0] > found[1]


def test_operators_of_others_are_counted_each_time(tmp_path, monkeypatch):
    table, cache = ranks(tmp_path, 1), CountCache(tmp_path / "cache")
    monkeypatch.setattr(plugins, "any_operators", lambda: True)
    count_tables([table], cache=cache)
    assert not cache.folder.exists()


@pytest.mark.exhaustive
def test_many_networks_are_counted_at_once_and_are_the_same(tmp_path):
    told: list[str] = []
    table = ranks(tmp_path, MANY + 2)
    at_once = count_tables([table], told.append, CountCache(tmp_path / "cache"))["paper/small"]
    assert at_once == {row.id: {"macs": row_count(table, row).total("conv_fc")} for row in table.rows}
    assert told[-1].endswith(f"of {len(set(told))} networks")
    wrong = ranks(tmp_path, MANY + 2, "  - {id: bad, label: B, overrides: [conv=hetconv, conv.p=7]}")
    with pytest.raises(ConvReproError, match="paper/small, row bad: "):
        count_tables([wrong], cache=CountCache(tmp_path / "cache2"))


def test_a_process_that_is_killed_while_it_counts_is_a_sentence_and_what_was_counted_is_kept(tmp_path):
    table, cache = ranks(tmp_path, 2 * MANY), CountCache(tmp_path / "cache")

    def kill(_: str) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(ConvReproError, match=r"was killed, .* goes on with what is not done yet"):
        count_tables([table], kill, cache)
    assert list(cache.folder.iterdir())


def test_many_rows_of_one_network_start_no_process(tmp_path):
    table, started = ranks(tmp_path, 1), []
    rates = [replace(table.rows[0], id=f"lr{n}", overrides=(f"recipe.optimizer.lr=0.{n}",)) for n in range(1, 2 * MANY)]
    count_tables(
        [replace(table, rows=(*table.rows, *rates))],
        lambda _: started.extend(multiprocessing.active_children()),
        CountCache(tmp_path / "cache"),
    )
    assert not started


def test_evidence_has_the_counts_at_hand_for_the_row_that_they_are_of(tmp_path):
    root, layers = tmp_path / "tables", ", layers: 'stem.*'"
    table = ranks(root, 2)
    counted = {row.id: {"macs": 100 + n} for n, row in enumerate(table.rows)}
    assert lacking(table, load_evidence(table, root)[0]) == ["r1", "r2"]
    collect(table, tmp_path / "runs", counted, root)
    assert load_evidence(table, root)[0] == counted
    text = (root / "paper/small.yaml").read_text()

    (root / "paper/small.yaml").write_text(text.replace("0.01", "0.33"))
    other = load_table("paper/small", root)
    assert load_evidence(other, root)[0] == {"r1": {}, "r2": {"macs": 101}}

    (root / "paper/small.yaml").write_text(text.replace("0.02]", "0.02]" + layers))
    part = load_table("paper/small", root)
    assert lacking(part, load_evidence(part, root)[0]) == ["r2"]
    assert str(collect(part, tmp_path / "runs", {}, root)).endswith("0 refused")
    assert lacking(part, load_evidence(part, root)[0]) == ["r2"]
    collect(part, tmp_path / "runs", {"r2": {"macs": 5}}, root)
    assert load_evidence(part, root)[0] == {"r1": {"macs": 100}, "r2": {"macs": 5}}
    assert lacking(table, load_evidence(table, root)[0]) == ["r2"]


def test_show_names_what_is_missing_and_the_command_that_fills_it(tmp_path):
    root = tmp_path / "tables"
    ranks(root, 2)
    env = {**os.environ, "CONVREPRO_TABLES": str(root)}
    shown = convrepro("show", "paper/small", env=env)
    assert "no count is on record of 2 rows; `convrepro collect paper/small` counts and records them" in shown.stdout
    collected = convrepro("collect", "paper/small", "--runs", str(tmp_path), env=env)
    assert collected.returncode == 0, collected.stderr
    assert evidence_path("paper/small", root).exists()
    assert "no count is on record" not in convrepro("show", "paper/small", env=env).stdout
