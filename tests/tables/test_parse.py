"""The rules that a table must keep: each mistake is told with its file, its row and the rule."""

from decimal import Decimal

import pytest

from convrepro.errors import ConvReproError
from convrepro.tables import judge, load_table, render_scoreboard, render_table
from support.small_table import SMALL, write

pytestmark = pytest.mark.unit


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
    "share of what is not counted": ("reduction_of: macs", "share_of: top1", ["metric 'reduction'", "'top1'"]),
    "unknown key of what is not measured": (
        "{unit: M, decimals: 2, printed: floor, count: conv_fc}",
        "{unit: ms, not_measured: a phone, tol: 1}",
        ["metric 'macs'", "unknown key 'tol'", "not_measured"],
    ),
    "erratum without cause": (
        "100.00, source: somewhere,",
        "100.00, erratum: it is 101, source: somewhere,",
        ["published 'macs'", "`cause` and `erratum` go together"],
    ),
    "unknown cause": (
        "100.00, source: somewhere,",
        "100.00, cause: haste, erratum: it is 101, source: somewhere,",
        ["published 'macs'", "'haste'", "misprint, convention, unexplained"],
    ),
    "cause of a trained value": (
        "94.00, source: somewhere,",
        "94.00, cause: misprint, erratum: it is 93, source: somewhere,",
        ["published 'top1'", "only static values"],
    ),
    "quoted row with layers": ("quoted: true", "quoted: true\n    layers: conv1", ["row 'other'", "quoted row"]),
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
    "weights from another table's run": (
        "    overrides: [conv=standard]",
        "    same_as: paper/first/plain",
        ["row 'thin'", "'plain', which is paper/first/plain and is not run here"],
    ),
    "weights from two places": (
        "overrides: [conv=hetconv]",
        "overrides: [conv=hetconv, weights=net.pth]",
        ["row 'thin'", "two checkpoints", "'plain'", "'weights=net.pth'"],
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
    "not a number": ("tol: 0.3", "tol: .nan", ["`tol` must be a number, not '.nan'"]),
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
        ("seeds: [0, 1]", "seeds: [0]", "other seeds"),
        ("same_as: paper/small/plain", "same_as: paper/small/plain\n    weights_from: plain", "no overrides or"),
    ],
)
def test_broken_reference_to_another_table(tmp_path, old, new, rule):
    write(write(tmp_path, SMALL), SAME.replace(old, new), "paper/again")
    with pytest.raises(ConvReproError, match=rule):
        load_table("paper/again", tmp_path)


def test_a_reference_across_bases_takes_the_whole_list_of_overrides(tmp_path):
    other = SAME.replace("base: [model=resnet18, data=cifar10]", "base: [data=cifar10]")
    table = load_table("paper/again", write(write(tmp_path, SMALL), other, "paper/again"))
    assert table.settings(table.row("thin")) == {"model": "resnet18", "data": "cifar10", "conv": "standard"}


def test_a_reference_to_a_row_that_lacks_what_the_base_gives(tmp_path):
    other = SAME.replace("data=cifar10]", "data=cifar10, recipe=x]")
    write(write(tmp_path, SMALL), other, "paper/again")
    with pytest.raises(ConvReproError, match="a row that has no recipe, which this table's base gives"):
        load_table("paper/again", tmp_path)


PART = SMALL.replace("    weights_from: plain\n", "    layers: conv1 layer1.*\n")


def test_a_part_of_a_network_is_counted_and_not_trained(tmp_path):
    table = load_table("paper/small", write(tmp_path, PART))
    assert [row.id for row in table.to_run] == ["plain"]
    assert judge(table, table.row("thin"), table.metrics["top1"], {}, {}).verdict == "-"


def test_a_table_of_counts_has_nothing_to_run(tmp_path):
    text = PART.replace('  top1: {unit: "%", tol: 0.3, why: one run}\n', "")
    text = text.replace("      top1: {value: 94.00, source: somewhere, confidence: found}\n", "")
    text = text.replace("    published: {top1: {value: 93.50, source: recollection, confidence: recalled}}\n", "")
    text = text[: text.index("  - id: other")]
    assert load_table("paper/small", write(tmp_path, text)).to_run == ()


def test_what_is_not_measured_is_shown_as_published_with_the_reason(tmp_path):
    text = SMALL.replace("  macs:", "  phone: {unit: ms, decimals: 0, not_measured: a phone of 2017}\n  macs:", 1)
    text = text.replace(
        "      macs:", "      phone: {value: 113, source: somewhere, confidence: found}\n      macs:", 1
    )
    table = load_table("paper/small", write(tmp_path, text))
    page = render_table(table, {}, {}, "markdown")
    assert "phone (ms)<br>paper | macs (M)<br>paper" in page
    assert "| 113 |" in page
    assert "phone: a phone of 2017" in page
    assert "113" not in render_scoreboard([("t", [(table, {}, {})])])


def test_a_share_is_a_percentage_of_the_base_row(tmp_path):
    text = SMALL.replace("reduction_of: macs, base_row: plain, from: printed", "share_of: macs, base_row: plain")
    table = load_table("paper/small", write(tmp_path, text))
    statics = {"plain": {"macs": 400_000_000}, "thin": {"macs": 50_000_000}}
    assert judge(table, table.row("thin"), table.metrics["reduction"], statics, {}).ours == "12.5"


def test_a_small_tolerance_is_a_number(tmp_path):
    table = load_table("paper/small", write(tmp_path, SMALL.replace("tol: 0.3", "tol: 5e-4")))
    assert table.metrics["top1"].tol == Decimal("0.0005")
