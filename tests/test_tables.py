"""The committed tables, the rules that a table must keep, and how one is shown."""

import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from convrepro.counting_rules import RULES
from convrepro.errors import ConvReproError
from convrepro.paths import CONF
from convrepro.tables import (
    Trained,
    judge,
    list_papers,
    list_tables,
    load_table,
    render_proxies,
    render_scoreboard,
    render_table,
)

TABLES = list_tables()

SMALL = """\
title: A small table
source: {paper: paper, arxiv: "1234.56789", table: 1}
question: does it hold?
base: [model=resnet18, data=cifar10]
seeds: [0, 1]
metrics:
  top1: {unit: "%", tol: 0.3, why: one run}
  macs: {unit: M, decimals: 2, printed: floor, count: conv_fc}
  reduction: {unit: "%", decimals: 1, printed: round, reduction_of: macs, base_row: plain, from: printed}
rows:
  - id: plain
    label: Plain
    overrides: [conv=standard]
    published:
      top1: {value: 94.00, source: somewhere, confidence: found}
      macs: {value: 100.00, source: somewhere, confidence: found}
  - id: thin
    label: Thin
    overrides: [conv=hetconv]
    weights_from: plain
    published: {top1: {value: 93.50, source: recollection, confidence: recalled}}
  - id: other
    label: Other work
    quoted: true
    published: {top1: {value: 92.123, source: recollection, confidence: recalled}}
claims:
  - {text: thin loses little, left: thin, right: plain, metric: top1, min_delta: -0.6}
"""


def write(root: Path, text: str, name: str = "paper/small") -> Path:
    path = root / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


def hetconv_vgg(p: int | str | None, se: bool = False, pair: int | str | None = None) -> Fraction:
    """VGG-16 on CIFAR-10 in the paper's count, from its formula: Do^2 N (M K^2 + 1) times the HetConv ratio."""
    total, width, side, channels = Fraction(0), 3, 32, [64, 64, 0, 128, 128, 0, *[256] * 3, 0, *([512] * 3 + [0]) * 2]
    for n in channels:
        if not n:
            side //= 2
            continue
        part = Fraction(1 if width == 3 or p is None else n if p == "out" else p)
        if pair and width > 3:
            groups = width if pair == "depthwise" else pair
            total += side**2 * (Fraction(9 * width * width, groups) + width + width * n)
        else:
            total += side**2 * n * (width * 9 + 1) * (1 / part + (1 - 1 / part) / 9)
        total += Fraction(2 * n * n, 8) if se else 0
        width = n
    return total + 512 * 512 + 512 * 10


def table1_statics() -> dict[str, dict[str, Fraction]]:
    parts = {"p1": None, **{f"p{p}": p for p in (2, 4, 8, 16, 32, 64)}, "pc": "out"}
    statics = {row: {"macs": hetconv_vgg(p)} for row, p in parts.items()}
    statics |= {f"{row}_se": {"macs": hetconv_vgg(p, se=True)} for row, p in parts.items()}
    statics["gwc4_pwc"] = {"macs": hetconv_vgg(None, pair=4)}
    statics["dwc_pwc"] = {"macs": hetconv_vgg(None, pair="depthwise")}
    return statics


def test_committed_tables_are_found():
    assert {"hetconv/table1", "hetconv/resnet50", "deepshift/mnist_v1", "deepshift/mnist_v5"} <= set(TABLES)
    assert {"deepshift", "hetconv"} <= set(list_papers())


@pytest.mark.parametrize("name", TABLES)
def test_committed_table_keeps_the_rules(name):
    table = load_table(name)
    assert {m.count for m in table.metrics.values()} - {""} <= RULES.keys()
    for row in table.to_run:
        given = table.settings(row)
        assert given.keys() >= {"model", "data", "recipe", "conv"}, row.id
        assert all((CONF / group / f"{given[group]}.yaml").exists() for group in ("conv", "recipe")), row.id


@pytest.mark.parametrize("name", TABLES)
def test_the_paper_meets_its_own_claims(name):
    """A claim that its own published values contradict is a slip of ours in either."""
    from convrepro.tables import judge_claim

    table = load_table(name)
    assert "fails" not in {judge_claim(table, claim, {}, {}).paper for claim in table.claims}


def test_quotient_of_counts_gives_the_published_figures_of_table_1():
    """Every verified count of the paper but the two that it rounds where it cuts the others."""
    table, statics = load_table("hetconv/table1"), table1_statics()
    verdicts = {
        (row.id, name): judge(table, row, table.metrics[name], statics, {}).verdict
        for row in table.rows
        for name in ("macs", "reduction")
    }
    assert {k for k, v in verdicts.items() if v == "static-off"} == {("gwc4_pwc", "macs"), ("dwc_pwc", "macs")}
    assert sum(v == "static-ok" for v in verdicts.values()) == 8 + 9
    assert {v for (row, _), v in verdicts.items() if row.endswith("_se")} <= {"unverified", "-"}


def test_counts_of_a_row_that_is_another_tables():
    table = load_table("hetconv/table2")
    statics = {row: table1_statics()[row] for row in ("p1", "p16", "p32", "p64")}
    for row in table.rows:
        cells = [judge(table, row, table.metrics[name], statics, {}) for name in ("macs", "reduction")]
        assert {c.verdict for c in cells} <= ({"quoted", "-"} if row.quoted else {"static-ok", "-"}), row.id
    assert table.to_run == ()
    assert table.row("p16").overrides == load_table("hetconv/table1").row("p16").overrides


def test_listing_imports_no_torch():
    code = "import sys, convrepro.evidence; from convrepro.tables import *; [load_table(n) for n in list_tables()]"
    heavy = "print({'torch', 'timm', 'lightning', 'hydra', 'rich', 'omegaconf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{heavy}"], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_unknown_table_names_the_near_ones():
    with pytest.raises(ConvReproError, match=r"no table 'hetconv/tabel1'.*hetconv/table1"):
        load_table("hetconv/tabel1")


def test_small_table_loads_with_its_digits(tmp_path):
    table = load_table("paper/small", write(tmp_path, SMALL))
    assert str(table.row("plain").published["top1"].value) == "94.00"
    assert table.metrics["top1"].tol == Decimal("0.3")
    assert table.metrics["top1"].run_metric == "top1"
    assert [row.id for row in table.to_run] == ["plain", "thin"]
    assert table.overrides(table.row("thin")) == ("model=resnet18", "data=cifar10", "conv=hetconv")
    with pytest.raises(ConvReproError, match=r"no row 'thick'; valid: plain, thin, other"):
        table.row("thick")


def test_settings_take_the_last_override(tmp_path):
    text = SMALL.replace("[conv=hetconv]", "[conv=hetconv, data=mnist, +model_args.se_reduction=8]")
    table = load_table("paper/small", write(tmp_path, text))
    given = table.settings(table.row("thin"))
    assert given["data"] == "mnist"
    assert given["model_args.se_reduction"] == "8"


RULE_BREAKS = {
    "unknown table key": ("title:", "titel:", ["unknown key 'titel'", "title", "seeds"]),
    "missing table key": ("question: does it hold?\n", "", ["`question` is missing"]),
    "unknown source key": ("arxiv:", "arXiv:", ["source", "unknown key 'arXiv'", "arxiv"]),
    "another paper's folder": ("{paper: paper,", "{paper: paperr,", ["'paperr'", "folder"]),
    "unknown metric key": ("why: one run", "wy: one run", ["metric 'top1'", "unknown key 'wy'", "why"]),
    "no tolerance": ("tol: 0.3, ", "", ["metric 'top1'", "needs a tolerance `tol`"]),
    "tolerance 0": ("tol: 0.3", "tol: 0", ["metric 'top1'", "above 0"]),
    "tolerance in words": ("tol: 0.3", "tol: small", ["metric 'top1'", "`tol` must be a number", "'small'"]),
    "no reason for the tolerance": (", why: one run", "", ["metric 'top1'", "`why` is missing"]),
    "unknown epoch": ("why: one run", "why: one run, epoch: middle", ["'middle'", "last, best"]),
    "no decimals": ("decimals: 2, ", "", ["metric 'macs'", "`decimals` is missing"]),
    "no rounding": ("printed: floor, ", "", ["metric 'macs'", "`printed` is missing"]),
    "unknown rounding": ("printed: floor", "printed: ceil", ["metric 'macs'", "'ceil'", "floor, round"]),
    "unknown unit": ("unit: M", "unit: T", ["metric 'macs'", "'T'", "1, k, M, G"]),
    "counted and computed": ("count: conv_fc", "count: conv_fc, reduction_of: macs", ["metric 'macs'", "not both"]),
    "reduction of what is not counted": ("reduction_of: macs", "reduction_of: top1", ["metric 'reduction'", "'top1'"]),
    "reduction against no row": ("base_row: plain", "base_row: plane", ["metric 'reduction'", "'plane'"]),
    "reduction against a quoted row": ("base_row: plain", "base_row: other", ["metric 'reduction'", "'other'"]),
    "unknown basis": ("from: printed", "from: guessed", ["metric 'reduction'", "'guessed'", "printed, exact"]),
    "unknown row key": ("label: Thin", "lable: Thin", ["row 'thin'", "unknown key 'lable'", "published"]),
    "row without overrides": ("    overrides: [conv=hetconv]\n", "", ["row 'thin'", "needs overrides"]),
    "override that is none": ("[conv=hetconv]", "[conv]", ["row 'thin'", "'conv' is no override"]),
    "overrides not a list": ("[conv=hetconv]", "conv=hetconv", ["row 'thin'", "`overrides` must be a list"]),
    "duplicate id": ("id: thin", "id: plain", ["row 'plain' is there twice"]),
    "id that is no folder": ("id: thin", "id: thin/er", ["row 'thin/er'", "folder"]),
    "quoted row with overrides": ("quoted: true", "quoted: true\n    overrides: [a=1]", ["row 'other'", "quoted row"]),
    "metric not declared": ("{top1: {value: 93.50", "{top3: {value: 93.50", ["row 'thin'", "'top3'", "top1, macs"]),
    "unknown published key": ("{value: 93.50,", "{val: 93.50,", ["row 'thin'", "published 'top1'", "'val'", "value"]),
    "value in words": ("{value: 93.50,", "{value: about 93,", ["row 'thin'", "a number or null", "'about 93'"]),
    "unknown confidence": (
        "confidence: recalled}}\n  - id",
        "confidence: sure}}\n  - id",
        ["'sure'", "found,"],
    ),
    "no source": ("{value: 94.00, source: somewhere,", "{value: 94.00,", ["row 'plain'", "found needs a source"]),
    "more digits than printed": ("value: 93.50", "value: 93.501", ["row 'thin'", "more digits than the 2 decimals"]),
    "weights from no row": ("weights_from: plain", "weights_from: plane", ["row 'thin'", "'plane'", "valid: plain"]),
    "weights from a quoted row": ("weights_from: plain", "weights_from: other", ["row 'thin'", "quoted row 'other'"]),
    "weights from itself": ("weights_from: plain", "weights_from: thin", ["row 'thin'", "circle: thin -> thin"]),
    "weights in a circle": (
        "[conv=standard]",
        "[conv=standard]\n    weights_from: thin",
        ["row 'thin'", "circle: plain -> thin -> plain"],
    ),
    "unknown claim key": ("min_delta: -0.6", "mindelta: -0.6", ["claim", "'mindelta'", "min_delta"]),
    "claim on no row": ("left: thin", "left: thick", ["claim 'thin loses little'", "'thick'", "plain, thin, other"]),
    "claim on no metric": ("metric: top1", "metric: top5", ["claim 'thin loses little'", "'top5'", "top1, macs"]),
    "claim without bounds": (", min_delta: -0.6", "", ["claim 'thin loses little'", "`min_delta`"]),
    "seed twice": ("seeds: [0, 1]", "seeds: [0, 0]", ["`seeds`", "once"]),
    "seed in words": ("seeds: [0, 1]", "seeds: [zero]", ["an item of seeds", "a whole number"]),
    "no rows": (SMALL[SMALL.index("rows:") :], "", ["needs `metrics` and `rows`"]),
    "rows not a list": (SMALL[SMALL.index("rows:") :], "rows: {a: 1}\n", ["`rows` must be a list"]),
    "key twice": ("question:", "title: again\nquestion:", ["key 'title' is there twice"]),
    "no YAML": ("seeds: [0, 1]", "seeds: [0, 1", ["cannot be read as YAML"]),
    "not a number": ("tol: 0.3", "tol: .nan", ["'.nan' is not a decimal number"]),
}


@pytest.mark.parametrize("broken", RULE_BREAKS)
def test_broken_rule_is_told_with_its_file(tmp_path, broken):
    old, new, fragments = RULE_BREAKS[broken]
    assert SMALL.count(old), "the case must change the table"
    write(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ConvReproError) as caught:
        load_table("paper/small", tmp_path)
    message = str(caught.value)
    assert "paper/small.yaml" in message
    assert all(fragment in message for fragment in fragments), message


SAME = SMALL.replace("    overrides: [conv=hetconv]\n    weights_from: plain\n", "    same_as: paper/small/plain\n")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("same_as: paper/small/plain", "same_as: paper/smal/plain", "no table 'paper/smal'"),
        ("same_as: paper/small/plain", "same_as: paper/small/plane", "no row 'plane'"),
        ("same_as: paper/small/plain", "same_as: paper/small/other", "without runs of its own"),
        ("same_as: paper/small/plain", "same_as: paper/small/thin", "starts from another's weights"),
        ("seeds: [0, 1]", "seeds: [0]", "another base or other seeds"),
        ("same_as: paper/small/plain", "same_as: paper/small/plain\n    weights_from: plain", "no overrides or"),
    ],
)
def test_broken_reference_to_another_table(tmp_path, old, new, rule):
    write(write(tmp_path, SMALL), SAME.replace(old, new), "paper/again")
    with pytest.raises(ConvReproError, match=rule):
        load_table("paper/again", tmp_path)


def test_a_small_tolerance_is_a_number(tmp_path):
    table = load_table("paper/small", write(tmp_path, SMALL.replace("tol: 0.3", "tol: 5e-4")))
    assert table.metrics["top1"].tol == Decimal("0.0005")


def done(table, row, seed, top1, **changes):
    given = table.row(row)
    result = {
        "status": "done",
        "budget": "paper",
        "seed": seed,
        "overrides": list(table.overrides(given)),
        "config": {"data": {"name": "cifar10"}},
        "metrics": {"last": {"top1": top1}, "best": {"top1": top1}},
    }
    return result | changes


@pytest.fixture
def small(tmp_path):
    return load_table("paper/small", write(tmp_path, SMALL))


@pytest.fixture
def results(small):
    return {
        "plain": {0: done(small, "plain", 0, 94.0), 1: done(small, "plain", 1, 94.2)},
        "thin": {0: done(small, "thin", 0, 90.0, budget="proxy")},
    }


STATICS = {"plain": {"macs": 100_004_999}, "thin": {"macs": 50_006_000}}


def line_of(text: str, label: str) -> list[str]:
    return next(line for line in text.splitlines() if label in line).split()


def test_text_shows_each_value_with_its_standing(small, results):
    text = render_table(small, STATICS, results, width=200)
    expected = ["Plain", "94.00", "94.10", "±0.14", "(2)", "+0.10", "100.00", "100.00", "ok", "0.0"]
    assert line_of(text, "Plain") == [*expected, "reproduced,", "static-ok"]
    assert line_of(text, "Thin") == ["Thin", "~93.50", "proxy", "90.00", "(1)", "-", "50.00", "50.0", "proxy"]
    assert line_of(text, "Other work") == ["Other", "work", "~92.123", "-", "quoted"]
    assert line_of(text, "thin loses little")[-4:] == ["-0.6", "unknown", "~holds", "(-0.50)"]
    assert "~: recalled" in text
    assert "proxy: fewer epochs or other data" in text
    assert "smoke" not in text


def test_narrow_text_separates_what_was_run_from_what_was_counted(small, results):
    text = render_table(small, STATICS, results, width=60)
    table = text[: text.index("~: recalled")]
    assert max(map(len, table.splitlines())) <= 60
    assert table.count("Plain") == table.count("Thin") == 2
    assert table.count("Other work") == 1


def test_static_part_alone(small, results):
    text = render_table(small, STATICS, results, static_only=True, width=200)
    assert "top1" not in text
    assert line_of(text, "Plain") == ["Plain", "100.00", "100.00", "ok", "0.0", "static-ok"]


def test_markdown_has_one_width_and_all_remarks(small, results):
    for name in TABLES:
        table = load_table(name)
        text = render_table(table, {}, {}, "markdown")
        grids = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count(" | ") for line in grids[: len(table.rows) + 2]}) == 1, name
        flat = " ".join(text.split())
        for remark in [r.erratum for r in table.rows] + [r.notes for r in table.rows] + list(table.deviations):
            assert " ".join(remark.split()) in flat, name
    plain = next(line for line in render_table(small, STATICS, results, "markdown").splitlines() if "Plain" in line)
    assert plain.startswith("| Plain | 94.00 | 94.10 ±0.14 (2) | +0.10 | 100.00 | 100.00 | ok | ")


def test_a_bar_in_a_label_does_not_break_markdown(tmp_path):
    table = load_table("paper/small", write(tmp_path, SMALL.replace("label: Thin", "label: Thin|flat")))
    assert "| Thin\\|flat |" in render_table(table, {}, {}, "markdown")


def test_square_brackets_are_shown_as_they_are(tmp_path):
    table = load_table("paper/small", write(tmp_path, SMALL.replace("label: Thin", "label: Thin [bold]")))
    assert "Thin [bold]" in render_table(table, {}, {}, width=200)


def test_unknown_style(small):
    with pytest.raises(ConvReproError, match="'html' is unknown; valid: text, markdown"):
        render_table(small, {}, {}, "html")


def test_scoreboard_counts_cells_and_claims(small, results):
    line = render_scoreboard([(small, STATICS, results)]).splitlines()[2]
    assert line == "| `paper/small` | 2 + 1 quoted | 1 ok | 1 reproduced, 1 proxy | 1 unknown |"


def test_scoreboard_of_table_1_without_runs():
    line = render_scoreboard([(load_table("hetconv/table1"), table1_statics(), {})]).splitlines()[2]
    assert "17 ok, 2 off, 14 unverified, 2 not counted" in line
    assert "18 not run" in line
    assert "4 holds, 6 unknown" in line


def test_proxies_are_shown_without_published_values(small, results):
    text = render_proxies(small, {"cifar10, budget proxy": results})
    assert "| Thin | 90.00 (1) |" in text
    assert "93.50" not in text


def test_trained_metric_takes_its_own_name_by_default():
    metrics = load_table("hetconv/table5").metrics
    assert [m.run_metric for m in metrics.values() if isinstance(m, Trained)] == ["top1", "top5"]
