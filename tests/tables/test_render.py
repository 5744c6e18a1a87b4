"""How a table is shown, in a terminal and in markdown."""

import re

import pytest

from convrepro.errors import ConvReproError
from convrepro.evidence.store import load_evidence
from convrepro.tables import list_tables, load_table, render_proxies, render_scoreboard, render_table
from support.small_table import SMALL, write

pytestmark = pytest.mark.unit


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


@pytest.mark.parametrize("name", list_tables())
def test_every_table_fits_into_80_columns_and_lacks_nothing(name):
    table = load_table(name)
    statics, results = load_evidence(table)
    narrow, wide = (render_table(table, statics, results, width=width) for width in (80, 400))
    assert max(map(len, narrow.splitlines())) <= 80
    rows = wide.partition("\n claim ")[0].splitlines()
    words = r"[^\s,()─]+"  # of two verdicts each stands at its own columns
    assert {word for line in rows for word in re.findall(words, line)} <= set(re.findall(words, narrow))


def test_static_part_alone(small, results):
    text = render_table(small, STATICS, results, static_only=True, width=200)
    assert "top1" not in text
    assert line_of(text, "Plain") == ["Plain", "100.00", "100.00", "ok", "0.0", "static-ok"]


def test_markdown_has_one_width_and_all_remarks(small, results):
    for name in list_tables():
        table = load_table(name)
        text = render_table(table, {}, {}, "markdown")
        grids = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count(" | ") for line in grids[: len(table.rows) + 2]}) == 1, name
        flat = " ".join(text.split())
        for remark in (
            [p.erratum for r in table.rows for p in r.published.values()]
            + [r.notes for r in table.rows]
            + list(table.deviations)
        ):
            assert " ".join(remark.split()) in flat, name
    plain = next(line for line in render_table(small, STATICS, results, "markdown").splitlines() if "Plain" in line)
    assert plain.startswith("| Plain | `plain` | 94.00 | 94.10 ±0.14 (2) | +0.10 | 100.00 | 100.00 | ok | ")


def test_a_bar_in_a_label_does_not_break_markdown(tmp_path):
    table = load_table("paper/small", write(tmp_path, SMALL.replace("label: Thin", "label: Thin|flat")))
    assert "| Thin\\|flat |" in render_table(table, {}, {}, "markdown")


def test_square_brackets_are_shown_as_they_are(tmp_path):
    table = load_table("paper/small", write(tmp_path, SMALL.replace("label: Thin", "label: Thin [bold]")))
    assert "Thin [bold]" in render_table(table, {}, {}, width=200)


def test_the_ids_by_which_claims_and_options_name_the_rows_are_shown(small):
    ids = ", ".join(row.id for row in small.rows)
    assert re.search(rf"\nRows, [^\n]* `--rows` [^\n]*\n  {ids}\n", render_table(small, {}, {}))
    lines = render_table(small, {}, {}, "markdown").splitlines()
    assert [line.split(" | ")[1] for line in lines if re.match(r"\| .* \| `\w+` \|", line)] == [
        f"`{row.id}`" for row in small.rows
    ]


def test_unknown_style(small):
    with pytest.raises(ConvReproError, match="'html' is unknown; valid: text, markdown"):
        render_table(small, {}, {}, "html")


def test_scoreboard_counts_cells_and_claims(small, results):
    line = render_scoreboard([("small", [(small, STATICS, results)])]).splitlines()[2]
    assert line == "| small | 2 + 1 quoted | 1 ok | 1 reproduced, 1 proxy | 1 unknown |"


def test_a_line_of_the_scoreboard_adds_up_its_tables(small, results):
    twice = render_scoreboard([("both", [(small, STATICS, results), (small, STATICS, {})])]).splitlines()[2]
    assert twice == "| both | 4 + 2 quoted | 2 ok | 1 reproduced, 1 proxy, 2 not run | 2 unknown |"


def test_proxies_are_shown_without_published_values(small, results):
    text = render_proxies(small, {"cifar10, budget proxy": results})
    assert "| Thin | 90.00 (1) |" in text
    assert "93.50" not in text
