"""Measured speed: turns that are fair, MAC ratios that are the count's, and a record that says how it was obtained."""

import json
import time
from dataclasses import replace

import pytest

from convrepro.cli.main import main
from convrepro.errors import ConvReproError
from convrepro.evidence import speed_suite as speed
from convrepro.evidence.counts import row_count
from convrepro.evidence.speed import Pair, Setting, compare_all, in_turns, pair_of_network, pairs_of_table
from convrepro.tables import load_table

QUICK = Setting(batch_size=2, threads=1, rounds=2)


def test_candidate_and_baseline_take_turns_in_alternating_order():
    turns = []
    ratio = in_turns(lambda: turns.append("candidate"), lambda: turns.append("baseline"), rounds=3)
    first_of_round = turns[::2]
    assert turns.count("candidate") == turns.count("baseline") == 4
    assert set(first_of_round[1:3]) == {"candidate", "baseline"}
    assert ratio.low <= ratio.median <= ratio.high


def test_the_slower_of_two_is_told_from_the_faster():
    busy = lambda n: lambda: sum(range(n))  # noqa: E731
    assert in_turns(busy(300_000), busy(30_000), rounds=5).median > 2
    assert in_turns(busy(30_000), busy(300_000), rounds=5).median < 0.5


def test_quartiles_lie_within_what_was_measured_however_uneven_it_is():
    pauses = iter([0.0, 0.001, 0.05])
    ratio = in_turns(lambda: time.sleep(next(pauses)), lambda: time.sleep(0.01), rounds=2)
    assert 0 < ratio.low < ratio.median < ratio.high


def test_a_row_is_timed_against_the_same_network_with_standard_convolutions():
    table, seen = load_table("hetconv/table1"), []
    (timing,), failures = compare_all(pairs_of_table(table, ["p16"], 2), QUICK, seen.append)
    assert (seen, failures) == ([timing], {})
    assert timing.pair.baseline == "standard"
    assert set(timing.ratios) == {"train", "inference"}
    p1, p16 = (row_count(table, table.row(row)).total("conv_fc") for row in ("p1", "p16"))
    assert timing.macs_ratio == p16 / p1
    assert timing.realised("train") == timing.macs_ratio / timing.ratios["train"].median


def test_a_row_without_an_operator_is_timed_against_the_first_row():
    pairs = pairs_of_table(load_table("mobilenet_v1/table6"), [], 1)
    assert [(pair.name, pair.baseline) for pair in pairs] == [(row, "mobilenet") for row in ("w075", "w050", "w025")]
    timings, _ = compare_all(pairs, Setting(1, 1, True, 1, ("inference",)), lambda timing: None)
    assert timings[0].macs_ratio > timings[1].macs_ratio > timings[2].macs_ratio


def test_the_record_says_how_it_was_obtained(tmp_path, capsys):
    words = ["bench", "model=resnet10t", "data=cifar10", "conv=gwc_pwc", "--modes", "inference,exported"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--batch-size", "2", "--threads", "1", "--rounds", "2", "--json", str(tmp_path / "b.json")])
    assert not stop.value.code
    content = json.loads((tmp_path / "b.json").read_text())
    (timing,) = content["timings"]
    assert 0 < timing["macs_ratio"] < 1
    for mode in ("inference", "exported"):
        assert timing["ratios"][mode]["baseline_seconds"] > 0
    assert content["setting"]["batch_size"] == 2
    assert content["environment"]["threads"] == 1
    assert content["environment"]["versions"]["torch"]
    assert "MACs x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hetconv/table1", "--rows", "p3"], "has no row 'p3' to time; valid: p1, p2"),
        (["hetconv/table1", "--rounds", "0"], "rounds=0 must be at least 1"),
        (["hetconv/table1", "--modes", "deploy"], "mode 'deploy' is unknown; valid: train, inference, exported"),
        (["model=resnet18", "data=cifar10"], "conv=standard replaces nothing"),
    ],
)
def test_bad_words_are_refused_with_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_network_without_an_operator_is_refused():
    with pytest.raises(ConvReproError, match="replaces nothing"):
        pair_of_network(["model=resnet18"], 2)


def test_what_cannot_be_timed_is_told_and_loses_nothing(tmp_path, monkeypatch, capsys):
    """The second pair asks for a model that does not exist; the first one's figures are written before."""
    plain = ("model=resnet10t", "data=cifar10")
    good = Pair("good", (*plain, "conv=gwc_pwc"), "plain", plain, 2, "some")
    pairs = [good, replace(good, name="bad", overrides=("model=resnet10t_",)), replace(good, name="last")]
    monkeypatch.setattr(speed, "suite", lambda: pairs)
    record = tmp_path / "b.json"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "all", "--modes", "inference", "--threads", "1", "--rounds", "1", "--json", str(record)])
    assert stop.value.code == 1
    timings = json.loads(record.read_text())["timings"]
    assert [(timing["group"], timing["name"]) for timing in timings] == [("some", "good"), ("some", "last")]
    assert "failed: bad: model 'resnet10t_' is neither in timm nor in the zoo" in capsys.readouterr().err
