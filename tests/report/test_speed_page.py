"""The suite of speeds, and the page of their records: medians over records, the slower ones named, goals judged."""

import json
import re

import pytest

from convrepro.cli.main import main
from convrepro.config.compose import compose_config
from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError, SetAside
from convrepro.evidence import speed_suite as speed
from convrepro.evidence.counts import row_count
from convrepro.evidence.speed_record import FOLDER, grid, merged, of_table, records
from convrepro.ops import OPERATORS
from convrepro.report import speed_page
from convrepro.report.plots.draw import svg
from convrepro.report.plots.speeds import INFERENCE, TRAINING, speeds
from convrepro.tables import list_papers, load_table
from convrepro.tables.markdown import markdown_grid

pytestmark = pytest.mark.unit

TABLE = load_table("hetconv/table1")
PLACE = {"device": "cpu: one", "threads": 2, "versions": {"torch": "2"}, "commit": "ab" * 20, "dirty": False}


def timing(name: str, train: float, inference: float, group: str = "operators") -> dict:
    ratios = {
        mode: {"median": ratio, "low": ratio, "high": ratio, "seconds": ratio * 3.2, "baseline_seconds": 3.2}
        for mode, ratio in (("train", train), ("inference", inference))
    }
    return {"group": group, "name": name, "baseline": "dense", "batch_size": 32, "macs_ratio": 0.25, "ratios": ratios}


def record(*timings: dict, goals: tuple = ()) -> dict:
    where = {"what": "all", "time": "2026", "environment": PLACE, "setting": {"channels_last": True}}
    return where | {"timings": list(timings), "goals": list(goals)}


RECORDS = [
    record(timing("quick", 0.5, 0.4), timing("slow", 1.2, 0.9)),
    record(timing("quick", 0.3, 0.4), timing("slow", 1.3, 0.8), timing("row", 0.5, 0.5, "a/b")),
    record(timing("quick", 0.6, 0.4), goals=({"name": "g", "baseline": "b", "bound": 0.5, "median": 0.51},)),
]


def test_every_operator_is_in_the_suite_and_a_headline_of_each_paper_with_an_image_network():
    entries = speed.suite()
    timed = {compose_config(entry.overrides).conv.name for entry in entries if entry.group == "operators"}
    assert timed == set(OPERATORS) - {"standard"}
    papers = {entry.group.split("/")[0] for entry in entries} - {"operators"}
    untimed = {"common", "igcv2", "lecture"}  # operators that are timed, in networks that are not, and no networks
    assert set(list_papers()) - papers == untimed
    assert all(entry.overrides != entry.baseline_overrides for entry in entries)


def test_a_row_that_is_not_run_is_refused(tmp_path):
    words = "operators: {base: [], batch_size: 1, rows: {}}\nnetworks:\n"
    (tmp_path / "speed.yaml").write_text(words + "  resnext/table3: {batch_size: 1, against: {r50: r50_1x64d}}\n")
    with pytest.raises(ConvReproError, match="resnext/table3 runs no row 'r50'; valid: r50_1x64d"):
        speed.suite(tmp_path / "speed.yaml")


def test_several_records_are_told_by_their_median_with_the_lowest_and_the_highest():
    quick, slow, row = merged(RECORDS)
    assert (quick.ratios["train"].median, quick.ratios["train"].low, quick.ratios["train"].high) == (0.5, 0.3, 0.6)
    assert quick.realised("train") == 0.5
    assert quick.milliseconds["train"] == pytest.approx(50)
    assert slow.ratios["train"].median == 1.25
    assert of_table("a/b", [quick, slow, row]) == [row]


def test_a_record_of_one_mode_adds_to_those_of_others():
    ratio = {"median": 0.7, "low": 0.7, "high": 0.7, "seconds": 0.32, "baseline_seconds": 0.5}
    exported = timing("quick", 0.5, 0.4) | {"ratios": {"exported": ratio}}
    (quick,) = merged([record(timing("quick", 0.5, 0.4)), record(exported)])
    assert {mode: str(spread) for mode, spread in quick.ratios.items()} == {
        "train": "0.50",
        "inference": "0.40",
        "exported": "0.70",
    }
    assert quick.milliseconds["exported"] == pytest.approx(10)
    page = speed_page.render([record(timing("quick", 0.5, 0.4)), record(exported)])
    assert "| quick | dense | 0.250 | 0.50 | 50 % | 50 | 0.40 | 62 % | 40 | 0.70 | 36 % | 10 |" in page


def test_only_records_of_the_same_baseline_setting_and_device_are_repetitions():
    quick = timing("quick", 0.5, 0.4)
    one = record(quick)
    others = [one | {"environment": PLACE | {"device": "cpu: other"}}, one | {"environment": PLACE | {"threads": 1}}]
    others += [one | {"setting": {"channels_last": False}}, record(quick | {"batch_size": 8})]
    others += [record(quick | {"baseline": "sparse"})]
    assert len(merged([one, *others, one])) == 6
    assert (
        "| quick (batches of 32, 2 threads, channels_last, cpu: other) |"
        in markdown_grid(grid(merged([one, others[0]]), ""))[3]
    )


def test_what_was_not_timed_in_a_mode_has_a_gap_there():
    lone = timing("lone", 0.5, 0.4)
    del lone["ratios"]["train"]
    assert markdown_grid(grid(merged([record(lone, timing("quick", 0.5, 0.4))]), ""))[2:] == [
        "| lone | dense | 0.250 |  |  |  | 0.40 | 62 % | 40 |",
        "| quick | dense | 0.250 | 0.50 | 50 % | 50 | 0.40 | 62 % | 40 |",
    ]


def test_the_page_names_what_is_slower_and_judges_the_goals():
    page = speed_page.render(RECORDS)
    assert "**Slower than the layers that they replace**, in a training step: slow." in page
    assert "| quick | dense | 0.250 | 0.50 (0.30 to 0.60) | 50 % | 50 |" in page
    assert "| g | b | 0.5 | 0.51 | 1 | missed |" in page
    assert page.count("commit abababab") == 3


def test_rows_of_our_own_tables_stand_apart_from_the_networks_of_papers():
    rows = [timing("r", 0.5, 0.4, group) for group in ("a/b", "common/c", "operators")]
    page = speed_page.render([record(*rows), record(timing("s", 0.5, 0.4, "a/d"))])
    assert re.findall(r"^## (.*)|^\| ([^|]*) \| dense ", page, re.M)[:7] == [
        ("Operators in one network", ""),
        ("", "r"),
        ("Networks of the papers", ""),
        ("", "a/b: r"),
        ("", "a/d: s"),
        ("All operators under one protocol", ""),
        ("", "r"),
    ]


def test_a_goal_that_is_missed_has_its_profile():
    profiles = [{"name": name, "candidate": {"addmm": 31.2, "relu": 2.0}, "reference": {"mm": 9.9}} for name in "gh"]
    met = {"name": "h", "baseline": "b", "bound": 0.5, "median": 0.5}
    page = speed_page.render([*RECORDS, record(goals=(met,)) | {"profiles": profiles}])
    assert "- g\n  - candidate, 33 ms: addmm 31, relu 2\n  - reference, 10 ms: mm 10" in page
    assert "- h" not in page


def test_rates_of_reading_are_on_the_page_only_where_they_were_measured():
    cell = {"stored": "500x375", "bytes": 81_600, "workers": 2, "median": 127.4, "low": 120.0, "high": 130.6}
    page = speed_page.render([*RECORDS, record() | {"loading": [cell]}])
    assert "| 500x375 | 82 | 2 | 127 | 120 to 131 |" in page
    assert "Reading photographs" not in speed_page.render(RECORDS)


def test_the_figure_has_a_dot_for_each_operator_and_mode():
    figure = speeds(merged(RECORDS), "Time")
    assert [(label, [(dot.y, dot.mark) for dot in dots]) for label, dots in figure.points] == [
        ("quick", [(0.5, TRAINING), (0.4, INFERENCE)]),
        ("slow", [(1.25, TRAINING), (0.85, INFERENCE)]),
    ]
    assert "1 are slower" in svg(figure)


@pytest.mark.heavy
def test_a_part_of_the_suite_runs_and_is_recorded(tmp_path, capsys):
    words = ["--only", "operators/DWC", "--modes", "inference", "--threads", "1", "--rounds", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "all", *words, "--json", str(tmp_path / "one.json")])
    assert not stop.value.code
    (found,) = records(tmp_path)
    (dwc,) = merged([found])
    assert (dwc.name, dwc.group, dwc.batch_size) == ("DWC + PWC", "operators", 32)
    own, dense = (row_count(TABLE, TABLE.row(row)).total("conv_fc") for row in ("dwc_pwc", "p1"))
    assert dwc.macs_ratio == own / dense


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"what"', r"speed\.json: this is not JSON"),
        ('{"schema": 2}', r"speed\.json: schema=2 must be 1"),
        ("[]", r"speed\.json: \[\] must be a mapping"),
    ],
)
def test_a_file_that_is_not_a_record_is_set_aside(text, message, tmp_path):
    (tmp_path / "speed.json").write_text(text)
    with pytest.warns(SetAside, match=message):
        assert not records(tmp_path)


def test_the_page_is_up_to_date():
    found = records()
    assert found, "nothing was measured"
    assert (REPRODUCTIONS / speed_page.PAGE).read_text() == speed_page.render(found)
    assert all(json.loads(path.read_text())["schema"] == 1 for path in (REPRODUCTIONS / FOLDER).glob("*.json"))
