"""The HTML page in a real browser: sorted, filtered and searched by mouse and keyboard, on a desk and on a phone."""

import pytest
from PIL import Image, ImageChops

from convrepro.report.html import Entry, render_page
from convrepro.tables import judge_claim, load_table
from convrepro.tables.verdict import judge_row
from support.browser import CHROMIUM, Browser
from support.pages import NASTY, entries, parts
from support.small_table import write

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium (apt-get install chromium)")

NAMES = ["hetconv/table1", "igcv1/imagenet", "deepshift/mnist_v1", "deepshift/mnist_v5"]
DESK, PHONE = (1280, 900), (390, 844)
COLUMN = "#hetconv-table1 .values tbody tr:not([hidden]) > :nth-child({})"
SHOWN = (
    "[...document.querySelectorAll('tr[data-verdicts]')].filter(e => e.offsetParent).map(e => e.cells[0].textContent)"
)

TOO_WIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .skip")
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    nasty = load_table("paper/small", write(folder, NASTY))
    statics = {"a": {"macs": 100_000_000}, "b": {"macs": 50_400_000}}
    path = folder / "page.html"
    path.write_text(render_page([*entries(NAMES), Entry(nasty, statics, {}, {})], parts()), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    """The page at desk size; nothing may complain, and nothing may be asked for but the file."""
    browser.open(file, *DESK)
    yield browser
    assert browser.errors == []
    assert browser.requests == [file.as_uri()]


def column(page, number: int) -> list[str]:
    return page.run(f"[...document.querySelectorAll({COLUMN.format(number)!r})].map(e => e.textContent)")


def header(number: int) -> str:
    return f"#hetconv-table1 .values thead tr:last-child th:nth-child({number}) button"


def test_a_click_on_a_header_sorts_up_then_down_then_back(page):
    before = column(page, 2)
    numbers = [float(text.removeprefix("~")) for text in before]
    assert numbers != sorted(numbers)
    page.click(header(2))
    assert [float(text.removeprefix("~")) for text in column(page, 2)] == sorted(numbers)
    assert page.run("document.querySelector('#hetconv-table1 [aria-sort]').getAttribute('aria-sort')") == "ascending"
    page.click(header(2))
    assert [float(text.removeprefix("~")) for text in column(page, 2)] == sorted(numbers, reverse=True)
    page.click(header(2))
    assert column(page, 2) == before
    assert page.run("document.querySelector('#hetconv-table1 [aria-sort]')") is None


def test_rows_move_whole_and_cells_without_a_number_stand_last(page):
    pairs = dict(zip(column(page, 1), column(page, 5), strict=True))
    for way in (1, -1):
        page.click(header(11))
        texts = column(page, 11)
        numbers = [float(text) for text in texts if text != "-"]
        assert numbers == sorted([3.54, 5.17])[::way]
        assert texts[len(numbers) :] == ["-"] * (len(texts) - 2)
        assert dict(zip(column(page, 1), column(page, 5), strict=True)) == pairs


def test_the_keyboard_sorts_too(page):
    page.run(f"document.querySelector({header(5)!r}).focus()")
    page.press("Enter")
    numbers = [float(text.removeprefix("~")) for text in column(page, 5)]
    assert numbers == sorted(numbers)
    page.press(" ")
    numbers = [float(text.removeprefix("~")) for text in column(page, 5)]
    assert numbers == sorted(numbers, reverse=True)


def test_labels_sort_as_a_reader_expects(page):
    page.click(header(1))
    names = [text.split()[0] for text in column(page, 1)]
    assert names.index("VGG-16_P2") < names.index("VGG-16_P4") < names.index("VGG-16_P16") < names.index("VGG-16_P64")


def having(wanted: set[str]) -> list[str]:
    """The rows and claims with one of the verdicts, as the tables judge them, in the page's order."""
    found = []
    for entry in entries(NAMES):
        table, statics, results = entry.table, entry.statics, entry.results
        for row in table.rows:
            cells = judge_row(table, row, statics, results).values()
            found += [f"{row.label} {row.id}"] * bool(wanted & {cell.verdict for cell in cells})
        found += [c.text for c in table.claims if judge_claim(table, c, statics, results).ours in wanted]
    return found


def test_a_verdict_filters_rows_tables_and_the_list(page):
    everything = page.run(SHOWN)
    page.click("input[value=off]")
    assert page.run(SHOWN) == having({"off"}) != []
    sections = "[...document.querySelectorAll('section.table')].filter(e => e.offsetParent).map(e => e.id)"
    assert page.run(sections) == ["deepshift-mnist_v1"]
    listed = "[...document.querySelectorAll('#board tbody tr')].filter(e => e.offsetParent).map(e => e.dataset.section)"
    assert page.run(listed) == ["deepshift-mnist_v1"]
    page.click("input[value=fails]")
    shown = [label for label in page.run(SHOWN) if "<script>" not in label]
    assert shown == having({"off", "fails"})
    assert page.run("document.querySelector('#shown').textContent").endswith(f" of {len(everything)} rows and claims")
    page.click("[type=reset]")
    page.wait(f"{SHOWN}.length === {len(everything)}")


def test_the_search_finds_rows_by_their_words_and_their_tables(page):
    page.click("#search")
    page.type("conv FROM")
    found = page.run(SHOWN)
    assert "Simple Conv, from scratch, as stated conv_scratch" in found
    assert "VGG-16_P4 p4" not in found
    page.run("document.querySelector('#search').select()")
    page.type("heterogeneous pc_se")
    assert page.run(SHOWN) == ["VGG-16_PC_SE pc_se"]
    page.run("document.querySelector('#search').select()")
    page.type("no such words")
    assert page.run(SHOWN) == []


def test_a_value_leads_to_its_source(page):
    page.click("#hetconv-table1 .recalled a")
    page.wait("location.hash === '#hetconv-table1-source-4'")
    page.wait("document.querySelector(':target').offsetParent !== null")
    assert page.run("document.querySelector(':target').textContent") == "recalled: recollection"
    assert 0 <= page.run("document.querySelector(':target').getBoundingClientRect().top") < DESK[1]


def test_a_link_to_a_table_that_is_filtered_away_shows_it(page):
    page.click("input[value=off]")
    page.run("location.hash = 'igcv1-imagenet'")
    page.wait("document.querySelector('#igcv1-imagenet').offsetParent !== null")
    assert page.run("document.querySelectorAll('input:checked').length") == 0


def test_nothing_that_a_table_says_runs(page):
    assert page.run("document.querySelectorAll('script').length") == 1
    assert page.run("document.querySelector('#paper-small tbody th').textContent") == '" onmouseover="alert(3) a'


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_it_is_as_wide_as_the_window_and_readable(browser, file, tmp_path, size, dark):
    browser.open(file, *size, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.run(TOO_WIDE) == []
    assert browser.run("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 13
    ink, back = browser.run("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert contrast(ink, back) > 7
    assert luminance(back) < 0.1 if dark else luminance(back) > 0.9
    for look in ("good", "bad", "open", "recalled"):
        color = browser.run(f"getComputedStyle(document.querySelector('td.{look}')).color")
        assert contrast(color, back) > 4.5, look
    scale = "document.querySelector('figure svg').getBoundingClientRect().width / 830"
    assert browser.run(scale) > 0.75
    browser.run("document.querySelector('#hetconv-table1 figure').scrollIntoView()")
    with Image.open(browser.screenshot(tmp_path / "page.png")) as image:
        assert image.size == size
        plain = Image.new("RGB", size, image.convert("RGB").getpixel((2, 2)))
        assert ImageChops.difference(image.convert("RGB"), plain).getbbox()
    assert browser.errors == []
    assert browser.requests == [file.as_uri()]


def luminance(color: str) -> float:
    """Relative luminance of `rgb(...)`, as in the Web Content Accessibility Guidelines 2.1."""
    parts = [float(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
