"""What the plots show, read back from the drawing."""

import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.speed_record import Speed, Spread
from convrepro.evidence.store import load_evidence
from convrepro.report.papers import plot_path, report
from convrepro.report.plots.draw import svg
from convrepro.report.plots.figures import figures
from convrepro.report.plots.files import overview, read_digest, write_overview, write_plots
from convrepro.report.plots.files import picture as picture_of
from convrepro.report.plots.labels import overlaps
from convrepro.report.plots.style import MARKS
from convrepro.tables import Table, list_tables, load_table
from support.command import convrepro
from support.drawn import SVG, Drawn, printed_statics
from support.small_table import write

pytestmark = pytest.mark.unit

YAML = """\
title: Five & <script> of $x_1$
source: {paper: paper, arxiv: "1234.56789", table: 1}
question: does it hold?
base: [model=resnet18, data=cifar10]
seeds: [0, 1]
metrics:
  top1: {unit: "%", tol: 0.3, why: one run}
  macs: {unit: M, decimals: 1, printed: round, count: conv_fc}
  params: {unit: k, decimals: 0, printed: round, count: params}
rows:
  - id: a
    label: Net A
    overrides: [conv=standard]
    published:
      top1: &found {value: 94.0, source: somewhere, confidence: found}
      macs: {<<: *found, value: 100.0}
      params: {<<: *found, value: 700}
  - id: b
    label: Net B
    overrides: [conv=hetconv]
    published: {top1: {<<: *found, value: 93.0}, macs: {<<: *found, value: 50.0}}
  - id: c
    label: Net C
    overrides: [conv=gwc_pwc]
    published:
      top1: {value: 92.0, source: recollection, confidence: recalled}
      macs: {value: 25.0, source: recollection, confidence: recalled}
  - id: d
    label: Net D
    overrides: [conv=dwc_pwc]
    published: {top1: {<<: *found, value: 91.0}, macs: {<<: *found, value: 12.5}}
  - id: e
    label: Other
    quoted: true
    published: {top1: {<<: *found, value: 90.0}, macs: {<<: *found, value: 20.0}}
"""
STATICS = {
    "a": {"macs": 100_000_000, "params": 700_000},
    "b": {"macs": 50_040_000, "params": 300_000},
    "c": {"macs": 25_200_000, "params": 1},
    "d": {"macs": 13_000_000, "params": 1},
}


def run(table, row: str, seed: int, top1: float, budget: str = "paper") -> dict:
    return {
        "status": "done",
        "budget": budget,
        "seed": seed,
        "overrides": list(table.overrides(table.row(row))),
        "config": {"data": {"name": "cifar10"}},
        "metrics": {"last": {"top1": top1}, "best": {"top1": top1}},
        "history": {"val/top1": f"50.00 80.00 {top1:.2f}"},
    }


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, YAML)


@pytest.fixture
def table(root):
    return load_table("paper/small", root)


@pytest.fixture
def results(table):
    return {
        "a": {0: run(table, "a", 0, 94.0), 1: run(table, "a", 1, 95.0)},
        "b": {0: run(table, "b", 0, 92.0)},
        "d": {0: run(table, "d", 0, 10.0, "proxy"), 1: run(table, "d", 1, 20.0, "smoke")},
    }


def drawn(table, statics, results) -> dict[str, Drawn]:
    return {figure.kind: Drawn(svg(figure)) for figure in figures(table, statics, results)}


def test_published_is_hollow_and_ours_is_filled_at_its_place(table, results):
    picture = drawn(table, STATICS, results)["accuracy"]
    a, b, d = picture.marks("published")
    ((cx, cy),), ((ex, ey),) = picture.marks("recalled"), picture.marks("quoted")
    assert d[0] < ex < cx < b[0] < a[0]
    assert ey < d[1] < cy < b[1] < a[1]
    ((ours_x, ours_y),) = picture.marks("ours")
    assert ours_x == pytest.approx(a[0], abs=0.01)
    assert ours_y == pytest.approx(a[1] + (a[1] - b[1]) / 2, abs=0.01)
    ((_, partial_y),) = picture.marks("partial")
    assert partial_y == pytest.approx(d[1] + (b[1] - d[1]) / 2, abs=0.01)
    for name in ("published", "recalled", "quoted", "ours", "partial"):
        (group,) = picture.groups(name)
        styles = [use.get("style") for use in group.iter(f"{SVG}use")]
        hollow = {"fill-opacity: 0" in style or "fill: none" in style for style in styles}
        assert hollow == {name not in ("ours", "partial")}


def widths(root, *coarse: str) -> tuple[Table, dict, dict]:
    """A table of one operator and the dense network at three widths, with no published value: statics and results.

    coarse: ids and labels of further rows, which need as many operations as the dense network.
    """
    narrow = "  - {id: %s, label: Thin %s, overrides: [conv=standard, model_args.width=%s], published: {}}\n"
    rows = "".join(narrow % (name, name, width) for name, width in (("t1", 0.5), ("t2", 0.25)))
    rows += "  - {id: a, label: Net A, overrides: [conv=standard], published: {}}\n"
    rows += "  - {id: b, label: Net B, overrides: [conv=hetconv], published: {}}\n"
    rows += "  - {id: tuned, label: Tuned, overrides: [recipe.epochs=5, conv=standard], weights_from: a}\n"
    rows += "".join(f"  - {{id: {q}, label: {q}, overrides: [conv=low_precision], published: {{}}}}\n" for q in coarse)
    bits = "  weight_bits: {unit: M, decimals: 1, printed: round, count: weight_bits}\n"
    table = load_table("paper/small", write(root, YAML[: YAML.index("rows:")] + bits + "rows:\n" + rows))
    macs = {"t1": 25, "t2": 6, "a": 100, "b": 40, "tuned": 100, **dict.fromkeys(coarse, 100)}
    top1 = {"t1": 92, "t2": 90, "a": 94, "b": 93, "tuned": 95, **dict.fromkeys(coarse, 91)}
    statics = {row: {"macs": value * 10**6, "params": 1} for row, value in macs.items()}
    return table, statics, {row: {seed: run(table, row, seed, top1[row]) for seed in (0, 1)} for row in macs}


def test_a_line_joins_the_dense_networks_of_all_widths(tmp_path):
    picture = drawn(*widths(tmp_path))["accuracy"]
    dense = sorted(picture.marks("dense"))
    assert len(dense) == 3
    assert len(picture.marks("ours")) == 2
    (corners,) = picture.lines("dense-line")
    assert corners == [pytest.approx(place, abs=0.01) for place in dense]
    assert {"Net B", "Tuned"} <= set(picture.texts)
    assert not {"Net A", "Thin t1", "Thin t2"} & set(picture.texts)


def test_accuracy_by_time_has_a_panel_for_each_mode_that_was_measured(tmp_path):
    table, statics, results = widths(tmp_path)
    assert "time" not in drawn(table, statics, results)
    shares = {"t1": 0.5, "t2": 0.25, "b": 0.8, "tuned": 1.0}
    timed = [
        Speed(table.name, row, "standard" if row == "b" else "a", 8, 2, True, "cpu", share, ratios(share), {})
        for row, share in shares.items()
    ]
    (figure,) = (f for f in figures(table, statics, results, timed) if f.kind == "time")
    assert [name for name, _ in figure.panels] == ["training step", "inference in onnxruntime"]
    assert [(pair.ours.x, pair.ours.y) for pair in figure.panels[0][1]] == [
        (0.5, 92), (0.25, 90), (1.0, 94), (0.8, 93), (1.0, 95)
    ]  # fmt: skip
    picture = Drawn(svg(figure))
    assert len(picture.marks("dense")) == 3 * 2
    assert "time / dense network's" in picture.texts


def ratios(share: float) -> dict[str, Spread]:
    return {mode: Spread(share, share, share) for mode in ("train", "exported")}


def test_rows_that_save_bits_alone_are_drawn_against_bits(tmp_path):
    table, statics, results = widths(tmp_path, *(f"q{bits}" for bits in (8, 4, 2)))
    bits = {"q8": 8, "q4": 4, "q2": 2}
    statics = {row: {**counts, "weight_bits": bits.get(row, 32) * 10**6} for row, counts in statics.items()}
    pictures = drawn(table, statics, results)
    assert len(pictures["accuracy"].marks("ours")) == 2
    assert {"Net B", "Tuned"} <= set(pictures["accuracy"].texts)
    assert len(pictures["bits"].marks("ours")) == 5
    assert {"Net A", "Tuned", "q8", "q4", "q2"} <= set(pictures["bits"].texts)
    equal = {row: {**counts, "weight_bits": 10**6} for row, counts in statics.items()}
    assert "bits" not in drawn(table, equal, results)
    assert len(drawn(table, equal, results)["accuracy"].marks("ours")) == 5


@pytest.mark.parametrize(("length", "in_words"), [(72, True), (73, False)])
def test_labels_of_more_than_300_letters_are_ids(tmp_path, length, in_words):
    names = [letter * length for letter in "wxyz"]
    table, statics, results = widths(tmp_path, *names)
    statics |= {name: {"macs": (i + 30) * 10**6} for i, name in enumerate(names)}
    texts = drawn(table, statics, results)["accuracy"].texts
    assert ("Net B" in texts, "b" in texts) == (in_words, not in_words)


def test_runs_that_are_compared_with_nothing_are_not_shown(table, results):
    only = drawn(table, STATICS, {"d": results["d"]})
    assert only["accuracy"].marks("ours") == only["accuracy"].marks("partial") == []
    assert "curves" not in only


def test_an_error_bar_is_one_standard_deviation_each_way(table, results):
    picture = drawn(table, STATICS, results)["accuracy"]
    a, b, _ = picture.marks("published")
    ((low, high),) = picture.lines("error-ours")
    assert high[1] - low[1] == pytest.approx(2 * 0.71 * (a[1] - b[1]), abs=0.01)
    assert picture.lines("error-partial") == []


def test_recalled_values_bear_their_mark(table, results):
    picture = drawn(table, STATICS, results)["accuracy"]
    assert "~C" in picture.texts
    assert "B" in picture.texts
    assert "Other" in picture.texts
    assert "published, from recollection (~)" in picture.texts
    assert "labels without “Net ”" in picture.texts


def test_costs_lie_on_the_line_or_are_labelled(table):
    picture = drawn(table, STATICS, {})["costs"]
    (start, end), _ = picture.lines("identity")

    def above(mark) -> float:
        share = (mark[0] - start[0]) / (end[0] - start[0])
        return mark[1] - start[1] - share * (end[1] - start[1])

    d, b, a = sorted([*picture.marks("exact")[:2], *picture.marks("off")])
    assert above(a) == pytest.approx(0, abs=0.01)
    assert above(b) == pytest.approx(0, abs=0.01)
    assert above(d) > 1
    assert above(picture.marks("recalled")[0]) > 0.1
    assert len(picture.marks("exact")) == 3
    assert [t for t in picture.texts if "ours" in t] == ["12.5, ours 13.0 (+4.0 %)"]
    assert "Net D:" in picture.texts
    assert {"published operations", "published parameters"} <= set(picture.texts)


def test_curves_are_means_with_bands_over_seeds(table, results):
    picture = drawn(table, STATICS, results)["curves"]
    one, two = picture.lines("curve")
    assert [len(one), len(two)] == [3, 3]
    assert one[:2] == two[:2]
    assert one[2][1] > two[2][1]
    ends = [y for x, y in picture.lines("band")[0] if x == pytest.approx(one[2][0], abs=0.1)]
    half = (one[2][1] - two[2][1]) * 0.5 / 2.5
    assert (min(ends), max(ends)) == pytest.approx((one[2][1] - half, one[2][1] + half), abs=0.01)
    assert {"Net A 94.50 (2 seeds)", "Net B 92.00 (1 seed)"} <= set(picture.texts)


def test_without_costs_the_rows_stand_one_below_the_other(tmp_path, results):
    text = re.sub(r",? ?(macs|params): \{[^}]*\}", "", YAML)
    picture = drawn(load_table("paper/small", write(tmp_path, text)), {}, results)["accuracy"]
    a, b, d = picture.marks("published")
    ((cx, cy),), (ours,) = picture.marks("recalled"), picture.marks("ours")
    assert a[0] > b[0] > cx > d[0]
    assert a[1] > b[1] > cy > d[1]
    assert ours[1] == a[1]
    assert ours[0] - a[0] == pytest.approx((a[0] - b[0]) / 2, abs=0.01)
    ((left, right),) = picture.lines("error-ours")
    assert right[0] - left[0] == pytest.approx(2 * 0.71 * (a[0] - b[0]), abs=0.01)
    assert {"Net A", "~Net C"} <= set(picture.texts)


def test_two_data_sets_have_a_panel_each(tmp_path, results):
    text = YAML.replace("[conv=gwc_pwc]", "[conv=gwc_pwc, data=cifar100]")
    picture = drawn(load_table("paper/small", write(tmp_path, text)), STATICS, results)["accuracy"]
    assert {"cifar10", "cifar100", "quoted"} <= set(picture.texts)
    ((_, c),), ((_, e),) = picture.marks("recalled"), picture.marks("quoted")
    assert min(y for _, y in picture.marks("published")) > c > e


def test_nothing_is_drawn_of_too_little():
    table = load_table("xception/table1")
    assert figures(table, printed_statics(table), {}) == []


def test_words_of_a_table_are_shown_as_they_are(table, results):
    for picture in drawn(table, STATICS, results).values():
        assert "Five & <script> of $x_1$" in picture.texts


def test_kinds_differ_without_colour():
    for kinds in (("exact", "off", "recalled"), ("ours", "partial", "published", "quoted", "recalled")):
        shapes = {(MARKS[kind]["marker"], MARKS[kind]["hollow"]) for kind in kinds}
        assert len(shapes) == len(kinds)


@pytest.mark.heavy
@pytest.mark.parametrize("name", list_tables())
def test_of_every_table_the_texts_are_readable_and_do_not_overlap(name):
    table = load_table(name)
    for kind, picture in drawn(table, printed_statics(table), load_evidence(table)[1]).items():
        assert (picture.width, min(picture.sizes)) == (622.5, 8)
        boxes = picture.boxes
        for text, (left, bottom, right, top) in boxes.items():
            assert (left >= 0, bottom >= 0) == (True, True), f"{kind}: {text}"
            assert (right <= picture.width, top <= picture.height) == (True, True), f"{kind}: {text}"
        assert [f"{kind}: {a} / {b}" for a, b in combinations(boxes, 2) if overlaps(boxes[a], boxes[b])] == []


@pytest.mark.heavy
def test_the_same_figure_is_the_same_bytes_in_another_process(table, results, root):
    code = (
        "import sys\nfrom pathlib import Path\nfrom test_plots import STATICS, figures, load_table, svg\n"
        "table = load_table('paper/small', Path(sys.argv[1]))\n"
        "sys.stdout.write(''.join(svg(figure) for figure in figures(table, STATICS, {})))\n"
    )
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    command = [sys.executable, "-c", code, str(root)]
    there = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert there.stdout == "".join(svg(figure) for figure in figures(table, STATICS, {})), there.stderr


def test_a_digest_changes_with_what_is_drawn(table, results, tmp_path):
    first, second = ({f.kind: f.digest for f in figures(table, STATICS, runs)} for runs in (results, {}))
    assert first["costs"] == second["costs"]
    assert first["accuracy"] != second["accuracy"]
    changed = {f.kind: f.digest for f in figures(table, STATICS | {"d": {"macs": 12_500_000, "params": 1}}, results)}
    assert changed["costs"] != first["costs"]
    assert changed["curves"] == first["curves"]


def test_files_are_written_where_the_page_shows_them_and_removed_with_their_data(table, results, root):
    written = write_plots(table, STATICS, results, root, png=True)
    kinds = ("accuracy", "costs", "curves")
    svgs = [plot_path(table.name, kind, root) for kind in kinds]
    assert written == [path for one in svgs for path in (one, one.with_suffix(".png"))]
    assert {path.name for path in (root / "paper/plots").iterdir()} == {path.name for path in written}
    for path, figure in zip(svgs, figures(table, STATICS, results), strict=True):
        assert read_digest(path) == figure.digest
        with Image.open(path.with_suffix(".png")) as image:
            assert image.width == 1660
    text = report("paper", lambda _: STATICS, root).read_text()
    assert [text.count(f"](plots/small-{kind}.svg)") for kind in kinds] == [1, 1, 1]

    before = svgs[1].read_bytes()
    assert write_plots(table, STATICS, {}, root) == svgs[:2]
    assert svgs[1].read_bytes() == before
    assert not svgs[2].exists()
    assert not svgs[2].with_suffix(".png").exists()
    assert "curves" not in report("paper", lambda _: STATICS, root).read_text()


def test_a_page_takes_a_drawing_of_the_same_values_and_no_other(table, results, root):
    (figure, *_), (other, *_) = (figures(table, STATICS, runs) for runs in (results, {}))
    path = plot_path(table.name, figure.kind, root)
    assert picture_of(figure, path) == svg(figure), "there is no file yet"
    write_plots(table, STATICS, results, root)
    path.write_text(path.read_text() + "<!-- as it was drawn -->")
    assert picture_of(figure, path) == path.read_text()
    assert other.kind == figure.kind
    assert picture_of(other, path) == svg(other)


def test_an_svg_tells_no_date_and_no_place(table, results):
    for figure in figures(table, STATICS, results):
        text = svg(figure)
        assert "dc:date" not in text
        assert "matplotlib.org" not in text
        assert str(Path.home()) not in text


@pytest.mark.heavy
def test_the_overview_has_the_costs_of_all_tables(table, root):
    names = ["hetconv/table1", "mobilenet_v2/table4", "igcv1/imagenet"]
    counted = [(t, printed_statics(t)) for t in map(load_table, names)]
    (path,) = write_overview(counted, root)
    assert path == root / "costs.svg"
    assert read_digest(path) == overview(counted).digest
    picture = Drawn(path.read_text())
    parts = [drawn(t, statics, {})["costs"] for t, statics in counted]
    for mark in ("exact", "recalled"):
        assert len(picture.marks(mark)) == sum(len(part.marks(mark)) for part in parts)


@pytest.mark.heavy
def test_the_command_draws_the_plots_of_a_table(tmp_path):
    shutil.copytree(REPRODUCTIONS / "lecture", tmp_path / "tables/lecture", ignore=shutil.ignore_patterns("plots"))
    environment = os.environ | {"CONVREPRO_TABLES": str(tmp_path / "tables")}
    done = convrepro("report", "lecture/se_overhead", "--plots", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = plot_path("lecture/se_overhead", "costs", tmp_path / "tables")
    assert done.stdout.split() == [str(path)]
    assert len(Drawn(path.read_text()).marks("exact")) == 5
    wrong = convrepro("report", "lecture/se_overhead", env=environment, cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "pages are of whole papers" in wrong.stderr
    assert "--plots" in convrepro("report", "lecture/se_overhead", "--png", env=environment, cwd=tmp_path).stderr
    assert "no paper 'lectures'" in convrepro("report", "lectures", "--plots", env=environment, cwd=tmp_path).stderr
