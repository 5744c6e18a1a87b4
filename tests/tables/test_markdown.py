"""Texts from outside on pages and terminals: shown as they are written, and obeyed by nothing."""

import pytest

from convrepro.errors import ConvReproError, visible
from convrepro.tables import load_table, render_table
from convrepro.tables.markdown import bullet, escaped, markdown_grid
from support import small_table

pytestmark = pytest.mark.unit

HOSTILE = {
    "a | b": r"a | b",
    "a `code|x` b": "a `code|x` b",
    "a ` b": r"a \` b",
    "``a ` b``": "``a ` b``",
    "<script>x</script> a < b <= c": r"\<script>x\</script> a < b <= c",
    "<!-- /scoreboard -->": r"\<!-- /scoreboard -->",
    "[a](javascript:b)": r"[a\](javascript:b)",
    "refused [1]": "refused [1]",
    "3 * 3 and *this*": r"3 * 3 and \*this\*",
    "weight_bits and _this_": r"weight_bits and \_this\_",
    "&lt; & b": r"\&lt; & b",
    "~93.93": "~93.93",
    "a\\|b": r"a\\|b",
    "two\nlines\r\n|here": "two lines |here",
    "\x1b[31mred\x07 \u202eevil\u2066": r"\x1b[31mred\x07 \u202eevil\u2066",
}


@pytest.mark.parametrize(("text", "page"), HOSTILE.items())
def test_texts_are_escaped(text, page):
    assert escaped(text) == page
    grid = markdown_grid(([("", "what"), (text, text)], [[text, text]]))
    assert len(grid) == 3
    for line in grid:
        bare = line.replace("\\\\", "").replace("\\|", "")
        assert bare.count("|") == 3, line
    assert visible("\n".join(grid)) == "\n".join(grid)


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("# no heading", r"- \# no heading"),
        ("- no list", r"- \- no list"),
        ("1. no number", r"- 1\. no number"),
        ("> no quotation", r"- \> no quotation"),
        ("-0.5 points", "- -0.5 points"),
        ("1.5 times", "- 1.5 times"),
    ],
)
def test_an_item_is_no_other_block(text, item):
    assert bullet(text) == item


@pytest.mark.parametrize("text", [r"\e[31mred", r"\u202eright", r"\rover", r"\u2028line", r"\x9b31m"])
@pytest.mark.parametrize("where", ["A small table", "Plain", "somewhere", "thin loses little", "one run"])
def test_a_table_with_control_characters_is_refused(text, where, tmp_path):
    content = small_table.SMALL.replace(where, f'"{where}{text}"', 1)
    with pytest.raises(ConvReproError, match="has a control character") as error:
        load_table("paper/small", small_table.write(tmp_path, content))
    assert str(error.value).isprintable()


def test_marks_of_a_table_do_not_reach_its_page(tmp_path):
    content = small_table.SMALL.replace("A small table", "'A <b>small</b> [table](http://x)'", 1)
    content = content.replace("label: Plain", "label: 'P | *q* `r'", 1)
    table = load_table("paper/small", small_table.write(tmp_path, content))
    page = render_table(table, {}, {}, "markdown")
    assert r"## A \<b>small\</b> [table\](http://x)" in page
    assert r"| P \| \*q\* \`r |" in page


def test_messages_show_what_is_hidden():
    assert str(ConvReproError("runs/a\x1b[2J\udcff.json\u202e: no")) == r"runs/a\x1b[2J\udcff.json\u202e: no"
